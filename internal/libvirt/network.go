package libvirt

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"unicode/utf8"

	"libvirt.org/go/libvirtxml"
)

// AnyNetwork is the name in a network map that stands for every VMware network
// the map does not name.
const AnyNetwork = "*"

// defaultNetwork is the network that a libvirt installation brings along.
const defaultNetwork = "default"

// NetworkTarget is where an adapter is plugged in: exactly one of the two is
// set.
type NetworkTarget struct {
	Bridge  string // a bridge device of the host
	Network string // a network that libvirt manages
}

// String writes the target as ParseNetworkMap reads it.
func (t NetworkTarget) String() string {
	if t.Network != "" {
		return "network:" + t.Network
	}
	return "bridge:" + t.Bridge
}

// bridgeName is what the kernel takes for an interface (IFNAMSIZ is 16 with
// the NUL), within what libvirt's schema takes.
var bridgeName = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.\-]{0,14}$`)

func (t NetworkTarget) check() error {
	switch {
	case (t.Bridge == "") == (t.Network == ""):
		return fmt.Errorf("want a bridge or a libvirt network")
	case t.Bridge != "" && !bridgeName.MatchString(t.Bridge):
		return fmt.Errorf("%q cannot be the name of a bridge", t.Bridge)
	case t.Network != "" && (strings.Contains(t.Network, "/") || strings.TrimSpace(t.Network) != t.Network ||
		!utf8.ValidString(t.Network) || strings.ContainsFunc(t.Network, notXML)):
		return fmt.Errorf("%q cannot be the name of a libvirt network", t.Network)
	}
	return nil
}

// ParseNetworkMap reads arguments of the form NAME=BRIDGE, NAME=bridge:BRIDGE
// or NAME=network:NETWORK, where NAME is a VMware network (or AnyNetwork). The
// last equals sign separates, because VMware names may hold some. A name given
// twice, an empty part or an impossible target is an error that shows the
// argument.
func ParseNetworkMap(args []string) (map[string]NetworkTarget, error) {
	m := make(map[string]NetworkTarget, len(args))
	for _, arg := range args {
		i := strings.LastIndexByte(arg, '=')
		if i < 1 || i == len(arg)-1 {
			return nil, fmt.Errorf("network %q: want NAME=BRIDGE or NAME=network:NETWORK", arg)
		}
		name, target := arg[:i], arg[i+1:]
		if _, dup := m[name]; dup {
			return nil, fmt.Errorf("network %q: %q is mapped twice", arg, name)
		}
		var t NetworkTarget
		if network, ok := strings.CutPrefix(target, "network:"); ok {
			t.Network = network
		} else {
			t.Bridge = strings.TrimPrefix(target, "bridge:")
		}
		if err := t.check(); err != nil {
			return nil, fmt.Errorf("network %q: %w", arg, err)
		}
		m[name] = t
	}
	return m, nil
}

// nicModel gives the adapter model that is nearest to VMware's, and whether
// the guest keeps the driver it has.
func nicModel(vmware string) (model string, same bool) {
	switch strings.TrimPrefix(strings.ToLower(vmware), "virtual") {
	case "vmxnet3":
		return "vmxnet3", true
	case "e1000e":
		return "e1000e", true
	case "e1000":
		return "e1000", true
	case "pcnet", "pcnet32", "vlance":
		return "pcnet", true
	}
	// Also vmxnet and vmxnet2, which nothing emulates, and SR-IOV. Every guest
	// of the last twenty years has a driver for the e1000.
	return "e1000", false
}

// interfaces maps the network adapters, in their order.
func (b *builder) interfaces() error {
	for name, t := range b.opts.NetworkMap {
		if err := t.check(); err != nil {
			return fmt.Errorf("map network %q: %w", name, err)
		}
	}
	for i, nic := range b.spec.NICs {
		model := "virtio"
		if b.opts.Hardware != Virtio {
			var same bool
			if model, same = nicModel(nic.Model); !same {
				b.note("Network adapter %d is a %q, which KVM does not have; it became an Intel e1000, for which the guest needs a driver.", i+1, nic.Model)
			}
		}
		out := libvirtxml.DomainInterface{Model: &libvirtxml.DomainInterfaceModel{Type: model}}

		if nic.MAC != "" {
			if mac, ok := unicastMAC(nic.MAC); ok {
				out.MAC = &libvirtxml.DomainInterfaceMAC{Address: mac}
			} else {
				b.note("Network adapter %d has the MAC address %q, which libvirt does not take; libvirt will choose one.", i+1, nic.MAC)
			}
		}

		target, mapped := b.opts.NetworkMap[nic.Network]
		if !mapped {
			target, mapped = b.opts.NetworkMap[AnyNetwork]
		}
		if !mapped {
			target = NetworkTarget{Network: defaultNetwork}
			b.note("VMware network %q is not mapped to one of this host; its adapters are connected to the libvirt network %q.", nic.Network, defaultNetwork)
		}
		if target.Bridge != "" {
			out.Source = &libvirtxml.DomainInterfaceSource{Bridge: &libvirtxml.DomainInterfaceSourceBridge{Bridge: target.Bridge}}
		} else {
			out.Source = &libvirtxml.DomainInterfaceSource{Network: &libvirtxml.DomainInterfaceSourceNetwork{Network: target.Network}}
		}
		if !nic.Connected {
			out.Link = &libvirtxml.DomainInterfaceLink{State: "down"}
		}
		b.devices.Interfaces = append(b.devices.Interfaces, out)
	}
	if len(b.spec.NICs) > 0 && b.guest.linux {
		b.note("The network adapters sit in other PCI slots than before: where the guest names them by slot (ens192 and the like), adapt its network configuration.")
	}
	return nil
}

// unicastMAC gives the address as libvirt writes it; libvirt refuses group
// addresses, and QEMU the zero address.
func unicastMAC(s string) (string, bool) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
		return "", false
	}
	return mac.String(), true
}
