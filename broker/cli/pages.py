"""The first page of help, and the names of the commands. A command's own page is made from its options."""

from __future__ import annotations

from typing import Final

COMMANDS: Final = ("serve", "check", "passwd", "explain", "sub", "pub", "rr", "bench")
"""Each is a module of this package with a `command`."""

HELP: Final = """\
Usage: broker COMMAND [OPTIONS]         (also: python -m broker)

An MQTT 5.0, 3.1.1 and 3.1 broker, and tools that talk to any.

Run a broker
  serve     Start one, on this machine only unless told otherwise
  check     Read a config file and list every mistake in it
  passwd    Make and change password files      (as mosquitto_passwd)
  explain   Say who may publish, subscribe or receive what, and by which rule
Talk to one
  sub       Print messages                      (as mosquitto_sub)
  pub       Publish messages                    (as mosquitto_pub)
  rr        Ask, and print the answer           (as mosquitto_rr)
  bench     Put load on it, and say what became of each message

Try it, in two terminals:
  broker serve
  broker sub -t 'sensors/#' -v          then   broker pub -t sensors/kitchen -m 21.5

In sub, pub, rr and bench -h is the host; elsewhere -h is --help.
Exit codes: 0 done, 1 failed, 2 wrong usage, 27 time (-W) ran out, else the
reason code with which the broker refused (135 = not authorized; 5 in MQTT 3.1.1).

  --version   Print the version and exit
  --help      Print this page; 'broker COMMAND --help' has the options
"""
