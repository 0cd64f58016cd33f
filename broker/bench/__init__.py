"""Load for any MQTT broker, and what became of each message: the works of `broker bench`.

Messages are made and checked many at a time, by columns of bytes: the frames of a run differ only in a few numbers at the
same place of each, which an extended slice sets or reads for all of them at once. That is what lets one Python core load a
broker with a million messages a second and still look at every byte.
"""
