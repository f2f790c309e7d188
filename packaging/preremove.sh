#!/bin/sh
set -e
case "$1" in
remove | 0) # by dpkg, by rpm; not when it is replaced by another version
	if [ -d /run/systemd/system ]; then
		systemctl disable --now hyper2kvmd.service
	fi
	;;
esac
