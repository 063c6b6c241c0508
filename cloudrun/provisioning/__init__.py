"""What a unit gets before a job runs on it: a Python environment, by Ansible and uv."""

import sysconfig

# It fills its tables at the first question, and two threads that ask at once find them half full.
sysconfig.get_config_vars()
