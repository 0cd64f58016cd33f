// mqtt.js behind the line protocol of tests/e2e/tools.py: options as JSON in argv, one JSON order a line in, one event a line out.
'use strict'
const fs = require('fs')
const mqtt = require('mqtt')
const readline = require('readline')

const options = JSON.parse(process.argv[2])
const five = options.version === '5.0'
const say = (event, fields) => process.stdout.write(JSON.stringify({ event, ...fields }) + '\n')

const toJs = (p) => {
  const properties = {}
  if (p.content_type !== undefined) properties.contentType = p.content_type
  if (p.response_topic !== undefined) properties.responseTopic = p.response_topic
  if (p.correlation_data !== undefined) properties.correlationData = Buffer.from(p.correlation_data)
  if (p.message_expiry_s !== undefined) properties.messageExpiryInterval = p.message_expiry_s
  if (p.user_properties !== undefined) {
    properties.userProperties = {}
    for (const [key, value] of p.user_properties) (properties.userProperties[key] ||= []).push(value)
  }
  return properties
}

const fromJs = (p) => {
  const properties = {}
  if (!p) return properties
  if (p.contentType !== undefined) properties.content_type = p.contentType
  if (p.responseTopic !== undefined) properties.response_topic = p.responseTopic
  if (p.correlationData !== undefined) properties.correlation_data = p.correlationData.toString()
  if (p.messageExpiryInterval !== undefined) properties.message_expiry_s = p.messageExpiryInterval
  if (p.userProperties !== undefined) {
    properties.user_properties = Object.entries(p.userProperties).flatMap(([key, values]) => [].concat(values).map((value) => [key, value]))
  }
  return properties
}

const client = mqtt.connect({
  host: options.host,
  port: options.port,
  protocol: (options.transport === 'websockets' ? 'ws' : 'mqtt') + (options.cafile ? 's' : ''),
  ca: options.cafile ? fs.readFileSync(options.cafile) : undefined,
  path: '/mqtt',
  protocolVersion: { '3.1': 3, '3.1.1': 4, '5.0': 5 }[options.version],
  protocolId: options.version === '3.1' ? 'MQIsdp' : 'MQTT',
  clientId: options.client_id || undefined,
  clean: options.clean,
  reconnectPeriod: 0,
  resubscribe: false,
  properties: five ? { sessionExpiryInterval: options.expiry_s } : undefined,
  will: options.will || undefined
})

client.on('connect', (packet) => say('connected', { session_present: packet.sessionPresent, reason: packet.reasonCode ?? packet.returnCode }))
client.on('message', (topic, payload, packet) =>
  say('message', { topic, payload: payload.toString(), qos: packet.qos, retain: packet.retain, properties: fromJs(packet.properties) }))
client.on('error', (error) => say('error', { text: String(error) }))
client.on('close', () => say('disconnected', { reason: 0 }))

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const order = JSON.parse(line)
  if (order.do === 'subscribe') {
    client.subscribe(order.filter, { qos: order.qos }, (error, granted) =>
      say(error ? 'error' : 'subscribed', error ? { text: String(error) } : { granted: granted.map((grant) => grant.qos) }))
  } else if (order.do === 'publish') {
    const publishOptions = { qos: order.qos, retain: order.retain, properties: five ? toJs(order.properties) : undefined }
    client.publish(order.topic, order.payload, publishOptions, (error) =>
      say(error ? 'error' : 'published', error ? { text: String(error) } : { reason: 0 }))
  } else {
    client.end(false, {}, () => process.exit(0))
  }
}).on('close', () => process.exit(0))
