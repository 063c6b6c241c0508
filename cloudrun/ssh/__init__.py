"""The way to a unit: keys, one paramiko connection, the agent behind it. Nothing else imports paramiko."""
