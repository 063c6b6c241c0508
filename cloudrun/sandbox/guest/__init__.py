"""What runs inside a unit: its PID 1, its sshd, and the small parts of cloud-init and systemd it needs."""
