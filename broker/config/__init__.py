"""The configuration: a TOML file, the environment over it, and every mistake in them told at once, each with its key and what was expected.

Order: command line > BROKER__LISTENERS__0__PORT > file > default. A key that we do not know is a mistake:
a misspelt `password_file` that is silently ignored is an open door.
"""

from broker.config.environment import ENV_PREFIX as ENV_PREFIX
from broker.config.whole import DEFAULT_LISTENERS as DEFAULT_LISTENERS
from broker.config.whole import Config as Config
