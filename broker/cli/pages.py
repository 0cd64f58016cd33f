"""The first page of help, and the names of the commands. A command's own page is made from its options.

No line of the page is longer than sixty characters, so that it stands in half a screen, too.
"""

from __future__ import annotations

from typing import Final

COMMANDS: Final = ("serve", "check", "passwd", "explain", "ctl", "sub", "pub", "rr", "bench")
"""Each is a module of this package with a `command`."""

HELP: Final = """\
Usage: broker COMMAND [OPTIONS]    (also: python -m broker)

A broker for MQTT 5.0, 3.1.1 and 3.1, and tools for any.

Run a broker
  serve     Start one, on this machine only unless told
            otherwise
  check     List every mistake in a config file
  passwd    Make and change password files
            (as mosquitto_passwd)
  explain   Say who may publish, subscribe or receive what,
            and by which rule
  ctl       Ask a running one which clients it has; throw
            out, ban
Talk to one
  sub       Print messages (as mosquitto_sub)
  pub       Publish messages (as mosquitto_pub)
  rr        Ask, and print the answer (as mosquitto_rr)
  bench     Put load on it, and say what became of each
            message

Try it, in three terminals:
  broker serve
  broker sub -t 'sensors/#' -v
  broker pub -t sensors/kitchen -m 21.5

In sub, pub, rr and bench -h is the host; elsewhere --help.
Exit codes: 0 done, 1 failed, 2 wrong usage, 27 the time of
-W ran out, else the reason code with which the broker
refused (135 = not authorized; 5 in MQTT 3.1.1).

  --version   Print the version and exit
  --help      Print this page; 'broker COMMAND --help' has
              the options
"""
