#!/bin/sh
# The user must be there before its files are.
set -e
if ! getent passwd hyper2kvm >/dev/null; then
	if command -v systemd-sysusers >/dev/null; then
		echo 'u hyper2kvm - "hyper2kvm export daemon" /var/lib/hyper2kvm /usr/sbin/nologin' | systemd-sysusers -
	else
		getent group hyper2kvm >/dev/null || groupadd --system hyper2kvm
		useradd --system --gid hyper2kvm --home-dir /var/lib/hyper2kvm --shell /usr/sbin/nologin --comment "hyper2kvm export daemon" hyper2kvm
	fi
fi
