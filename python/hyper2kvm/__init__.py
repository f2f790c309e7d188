"""Exports of VMs from VMware vSphere, driven from Python.

The work is done by the daemon hyper2kvmd; see hyper2kvm.vmware.transports.
"""

__version__ = "1.0.0"
