"""What gets VMs out of VMware; see hyper2kvm.vmware.transports."""
