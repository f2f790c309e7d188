package libvirt

import (
	"encoding/xml"
	"fmt"
	"math/bits"
	"regexp"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// manyCPUs is the number of CPUs above which libvirt wants an IOMMU with
// extended interrupt mode, which only the q35 machine has.
const manyCPUs = 255

// oldestMaxCPUs is what the q35 machine of QEMU before 8.2 takes.
const oldestMaxCPUs = 288

// builder holds one domain in the making.
type builder struct {
	spec    Domain
	opts    Options
	guest   guest
	devices libvirtxml.DomainDeviceList
	notes   []string
}

// note records, once, what an administrator has to know.
func (b *builder) note(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(b.notes, s) {
		b.notes = append(b.notes, s)
	}
}

// Build describes the VM as a libvirt domain. The XML ends with a newline and
// depends on nothing but the arguments. The notes are sentences for an
// administrator, one for each thing that could not be carried over as it was;
// names in them are quoted so that they are safe to print. An error means that
// spec or opts are out of range, never that a device is unknown. Build keeps
// no reference to its arguments and may be called concurrently.
func Build(spec Domain, opts Options) (doc []byte, notes []string, err error) {
	if err := spec.check(); err != nil {
		return nil, nil, fmt.Errorf("describe domain: %w", err)
	}
	if opts.Hardware, err = ParseHardware(string(opts.Hardware)); err != nil {
		return nil, nil, fmt.Errorf("describe domain: %w", err)
	}
	switch opts.CPU {
	case "":
		opts.CPU = HostModel
	case HostModel, HostPassthrough:
	default:
		return nil, nil, fmt.Errorf("describe domain: CPU mode %q is unknown", opts.CPU)
	}
	b := &builder{spec: spec, opts: opts, guest: guestOf(spec.GuestID)}

	name, changed := domainName(spec.Name)
	if changed {
		b.note("The VM's name %q is not one that libvirt takes; the domain is called %q.", spec.Name, name)
	}
	dom := libvirtxml.Domain{
		Type:          "kvm",
		Name:          name,
		UUID:          b.uuid(),
		Memory:        &libvirtxml.DomainMemory{Value: uint(spec.MemoryMiB), Unit: "MiB"},
		CurrentMemory: &libvirtxml.DomainCurrentMemory{Value: uint(spec.MemoryMiB), Unit: "MiB"},
		VCPU:          &libvirtxml.DomainVCPU{Placement: "static", Value: uint(spec.CPUs)},
		OS:            b.os(),
		Features:      b.features(),
		CPU:           b.cpu(),
		Clock:         b.clock(),
		OnPoweroff:    "destroy",
		OnReboot:      "restart",
		OnCrash:       "destroy",
		Devices:       &b.devices,
	}
	if dom.Metadata, err = b.metadata(); err != nil {
		return nil, nil, fmt.Errorf("describe domain %q: %w", name, err)
	}
	b.disks()
	if err := b.interfaces(); err != nil {
		return nil, nil, fmt.Errorf("describe domain %q: %w", name, err)
	}
	b.periphery()
	for _, other := range spec.OtherDevices {
		b.note("A device of the VM has no counterpart in the domain: %q.", other)
	}
	text, err := dom.Marshal()
	if err != nil {
		return nil, nil, fmt.Errorf("describe domain %q: %w", name, err)
	}
	return []byte(text + "\n"), b.notes, nil
}

// q35 reports which of the two machines it is. VMware's virtual machine is a
// 440BX with an IDE interface like the PIIX3 of QEMU's "pc": a BIOS guest finds
// there what it was installed on, and old kernels that know only the first
// version of virtio find that too. UEFI firmware is built for q35, and with
// secure boot for nothing else; only IDE disks make a UEFI guest stay with
// "pc", where they can.
func (b *builder) q35() bool {
	if b.spec.CPUs > manyCPUs || b.spec.SecureBoot {
		return true
	}
	if !b.spec.uefi() {
		return false
	}
	if b.opts.Hardware == Virtio {
		return true
	}
	return !slices.ContainsFunc(b.spec.Disks, func(d Disk) bool { return d.kind() == kindIDE })
}

func (b *builder) os() *libvirtxml.DomainOS {
	os := &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: "x86_64", Machine: "pc", Type: "hvm"}}
	if b.q35() {
		os.Type.Machine = "q35"
	}
	if !b.spec.uefi() {
		return os
	}
	// libvirt chooses the firmware image from the features asked for, and
	// copies its template of variables when the domain starts first. Paths of
	// firmware files differ between distributions, so none is written.
	os.Firmware = "efi"
	if b.spec.SecureBoot {
		os.Loader = &libvirtxml.DomainLoader{Secure: "yes"}
		os.FirmwareInfo = &libvirtxml.DomainOSFirmwareInfo{Features: []libvirtxml.DomainOSFirmwareFeature{
			{Enabled: "yes", Name: "enrolled-keys"},
			{Enabled: "yes", Name: "secure-boot"},
		}}
		b.note("Secure boot uses the keys that the host's firmware has enrolled (Microsoft's); keys that were added to the VM have to be added again.")
	} else {
		// Not the absence of the secure-boot feature: some distributions have
		// no other build, and without enrolled keys it is not in force.
		os.FirmwareInfo = &libvirtxml.DomainOSFirmwareInfo{Features: []libvirtxml.DomainOSFirmwareFeature{
			{Enabled: "no", Name: "enrolled-keys"},
		}}
	}
	if b.spec.NVRAM != "" {
		b.note("The UEFI variables in %q are in VMware's format, which KVM's firmware cannot read; the domain starts with new ones. If the guest is not found, choose its loader in the firmware's menu (Boot From File), or restore its boot entry from within.", b.spec.NVRAM)
	} else {
		b.note("The domain starts with new UEFI variables. If the guest is not found, choose its loader in the firmware's menu (Boot From File), or restore its boot entry from within.")
	}
	return os
}

func (b *builder) features() *libvirtxml.DomainFeatureList {
	f := &libvirtxml.DomainFeatureList{
		ACPI: &libvirtxml.DomainFeature{},
		APIC: &libvirtxml.DomainFeatureAPIC{},
		// QEMU answers at VMware's backdoor port by default, and VMware's tools
		// in the guest would go on believing.
		VMPort: &libvirtxml.DomainFeatureState{State: "off"},
	}
	if b.spec.SecureBoot {
		f.SMM = &libvirtxml.DomainFeatureSMM{State: "on"}
	}
	if b.guest.windows && !b.guest.legacy {
		// Without these, Windows spins where it could wait.
		on := libvirtxml.DomainFeatureState{State: "on"}
		f.HyperV = &libvirtxml.DomainFeatureHyperV{
			Relaxed:   &on,
			VAPIC:     &on,
			Spinlocks: &libvirtxml.DomainFeatureHyperVSpinlocks{DomainFeatureState: on, Retries: 8191},
		}
	}
	if b.spec.CPUs > manyCPUs {
		f.IOAPIC = &libvirtxml.DomainFeatureIOAPIC{Driver: "qemu"}
		b.devices.IOMMUs = []libvirtxml.DomainIOMMU{{
			Model:  "intel",
			Driver: &libvirtxml.DomainIOMMUDriver{IntRemap: "on", EIM: "on"},
		}}
		if b.spec.CPUs > oldestMaxCPUs {
			b.note("The domain has %d CPUs; QEMU before 8.2 takes no more than %d.", b.spec.CPUs, oldestMaxCPUs)
		}
	}
	return f
}

func (b *builder) cpu() *libvirtxml.DomainCPU {
	cores := max(b.spec.CoresPerSocket, 1)
	if b.spec.CPUs%cores != 0 {
		b.note("%d CPUs cannot be divided into sockets of %d cores; each CPU became a socket.", b.spec.CPUs, cores)
		cores = 1
	}
	cpu := &libvirtxml.DomainCPU{
		Mode:     string(b.opts.CPU),
		Check:    "partial",
		Topology: &libvirtxml.DomainCPUTopology{Sockets: b.spec.CPUs / cores, Cores: cores, Threads: 1},
	}
	if b.opts.CPU == HostPassthrough {
		cpu.Check = "none"
	}
	return cpu
}

func (b *builder) clock() *libvirtxml.DomainClock {
	offset := b.spec.Clock
	if offset == GuestClock {
		offset = UTC
		if b.guest.localTime() {
			offset = LocalTime
		}
	}
	clock := &libvirtxml.DomainClock{
		Offset: string(offset),
		Timer: []libvirtxml.DomainTimer{
			{Name: "rtc", TickPolicy: "catchup"},
			{Name: "pit", TickPolicy: "delay"},
			{Name: "hpet", Present: "no"},
		},
	}
	if b.guest.windows && !b.guest.legacy {
		clock.Timer = append(clock.Timer, libvirtxml.DomainTimer{Name: "hypervclock", Present: "yes"})
	}
	return clock
}

// canonicalUUID is the only form that both vSphere and libvirt write.
var canonicalUUID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// noUUID is what stands where somebody had to fill in one.
const noUUID = "00000000-0000-0000-0000-000000000000"

// uuid is the domain's UUID, or empty: then libvirt makes one up.
func (b *builder) uuid() string {
	uuid := strings.ToLower(b.spec.BIOSUUID)
	if canonicalUUID.MatchString(uuid) && uuid != noUUID {
		return uuid
	}
	b.note("The VM's BIOS UUID %q cannot be used; libvirt will choose one, and software that is licensed to it may ask again.", b.spec.BIOSUUID)
	return ""
}

// osinfoMetadata is what virt-manager and others read to know the guest's OS.
type osinfoMetadata struct {
	XMLName xml.Name `xml:"libosinfo:libosinfo"`
	NS      string   `xml:"xmlns:libosinfo,attr"`
	OS      struct {
		ID string `xml:"id,attr"`
	} `xml:"libosinfo:os"`
}

// sourceMetadata keeps what the VM was, for people and for tools that come
// later.
type sourceMetadata struct {
	XMLName      xml.Name        `xml:"hyper2kvm:source"`
	NS           string          `xml:"xmlns:hyper2kvm,attr"`
	Name         string          `xml:"hyper2kvm:name"`
	GuestID      string          `xml:"hyper2kvm:guest-id,omitempty"`
	BIOSUUID     string          `xml:"hyper2kvm:bios-uuid,omitempty"`
	InstanceUUID string          `xml:"hyper2kvm:instance-uuid,omitempty"`
	NVRAM        string          `xml:"hyper2kvm:nvram,omitempty"`
	Networks     []sourceNetwork `xml:"hyper2kvm:network"`
}

type sourceNetwork struct {
	MAC  string `xml:"mac,attr,omitempty"`
	Name string `xml:"name,attr"`
}

// metadata writes the elements that libvirt keeps and does not read. libvirt
// allows one element for each namespace.
func (b *builder) metadata() (*libvirtxml.DomainMetadata, error) {
	source := sourceMetadata{
		NS:           "https://github.com/hyper2kvm/hyper2kvm/domain/1.0",
		Name:         b.spec.Name,
		GuestID:      b.spec.GuestID,
		BIOSUUID:     b.spec.BIOSUUID,
		InstanceUUID: b.spec.InstanceUUID,
		NVRAM:        b.spec.NVRAM,
	}
	for _, nic := range b.spec.NICs {
		source.Networks = append(source.Networks, sourceNetwork{nic.MAC, nic.Network})
	}
	elements := []any{source}
	if b.guest.osinfo != "" {
		osinfo := osinfoMetadata{NS: "http://libosinfo.org/xmlns/libvirt/domain/1.0"}
		osinfo.OS.ID = b.guest.osinfo
		elements = append(elements, osinfo)
	} else if b.spec.GuestID != "" {
		b.note("The guest OS %q has no entry in libosinfo; the domain carries VMware's id only.", b.spec.GuestID)
	}
	var text strings.Builder
	for _, e := range elements {
		out, err := xml.MarshalIndent(e, "    ", "  ")
		if err != nil {
			return nil, fmt.Errorf("write metadata: %w", err)
		}
		text.WriteString("\n")
		text.Write(out)
	}
	text.WriteString("\n  ")
	return &libvirtxml.DomainMetadata{XML: text.String()}, nil
}

// periphery adds what every machine has: screen, pointer, serial console, and
// with virtio hardware the conveniences that need its drivers.
func (b *builder) periphery() {
	// A pointer that follows the host's, on a USB controller that the machine
	// would have by default.
	usb := libvirtxml.DomainController{Type: "usb", Index: new(uint), Model: "piix3-uhci"}
	if b.q35() {
		usb.Model = "qemu-xhci"
	}
	b.devices.Controllers = append(b.devices.Controllers, usb)
	b.devices.Inputs = []libvirtxml.DomainInput{{Type: "tablet", Bus: "usb"}}

	b.devices.Serials = []libvirtxml.DomainSerial{{
		Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}},
		Target: &libvirtxml.DomainSerialTarget{Type: "isa-serial", Port: new(uint), Model: &libvirtxml.DomainSerialTargetModel{Name: "isa-serial"}},
	}}
	b.devices.Consoles = []libvirtxml.DomainConsole{{
		Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}},
		Target: &libvirtxml.DomainConsoleTarget{Type: "serial", Port: new(uint)},
	}}

	b.devices.Graphics = []libvirtxml.DomainGraphic{{VNC: &libvirtxml.DomainGraphicVNC{Port: -1, AutoPort: "yes", Listen: "127.0.0.1"}}}
	// Standard VGA is what every guest can draw on without a driver. QEMU's
	// imitation of VMware's card is not taken: current Linux drivers refuse it.
	video := libvirtxml.DomainVideoModel{Type: "vga", VRam: videoRAM(b.spec.VideoRAMKiB), Heads: 1, Primary: "yes"}
	balloon := "none" // a device the guest may have no driver for
	if b.opts.Hardware == Virtio {
		balloon = "virtio"
		if b.guest.linux {
			video = libvirtxml.DomainVideoModel{Type: "virtio", Heads: 1, Primary: "yes"}
		}
		b.devices.RNGs = []libvirtxml.DomainRNG{{
			Model:   "virtio",
			Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
		}}
		b.devices.Channels = []libvirtxml.DomainChannel{{
			Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{}},
			Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: "org.qemu.guest_agent.0"}},
		}}
		if b.guest.windows {
			b.note("Windows needs the virtio drivers (vioscsi for its disk, NetKVM for its network, from virtio-win) before it first starts as this domain.")
		} else {
			b.note("The guest needs virtio drivers (virtio_scsi for its disk, virtio_net for its network) before it first starts as this domain; in Linux they must be in its initramfs.")
		}
	}
	b.devices.Videos = []libvirtxml.DomainVideo{{Model: video}}
	b.devices.MemBalloon = &libvirtxml.DomainMemBalloon{Model: balloon}
}

// videoRAM gives the memory of the VGA card in KiB: VMware's size, rounded up
// to the power of two that QEMU wants, between QEMU's default of 16 MiB and
// 64 MiB.
func videoRAM(kib int64) uint {
	const least, most = 16 << 10, 64 << 10
	kib = min(max(kib, least), most)
	return 1 << bits.Len64(uint64(kib)-1)
}
