// Package libvirt describes a virtual machine that came from VMware as a
// libvirt domain: the XML that `virsh define` takes, and in sentences what
// could not be carried over. It opens no file and talks to no hypervisor; it
// knows nothing of vSphere or of this project, only of plain values.
//
// Element and attribute names are those of libvirt's "Domain XML format"
// (formatdomain). The output asks for nothing newer than libvirt 7.2 unless an
// option says so, because the machine that defines the domain may be older
// than the one that wrote it.
//
// The emulated VMware devices (pvscsi, LSI SAS 1068, vmxnet3) are part of
// upstream QEMU and of the builds of Debian, Ubuntu, Fedora and SUSE. The
// qemu-kvm of RHEL and its rebuilds leaves them out: guests meant for it need
// the virtio hardware.
package libvirt

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Firmware is what starts the guest.
type Firmware string

// The firmwares. The empty string means BIOS, as in VirtualMachineConfigInfo.
const (
	BIOS Firmware = "bios"
	UEFI Firmware = "efi" // VMware's word; "uefi" is taken too
)

// Clock is what the virtual real-time clock shows.
type Clock string

// The clocks. GuestClock chooses by guest OS: local time for Windows and DOS,
// UTC for everything else.
const (
	GuestClock Clock = ""
	UTC        Clock = "utc"
	LocalTime  Clock = "localtime"
)

// Limits on what is accepted, well above VMware's own (768 CPUs, 24 TiB, 10
// adapters, 256 SCSI disks). They keep a lying descriptor from growing the
// output without end.
const (
	maxCPUs     = 4096
	maxMemory   = 1 << 27 // MiB, 128 TiB
	maxDisks    = 512
	maxNICs     = 64
	maxBus      = 31
	maxUnit     = 255
	maxOthers   = 256
	maxNameByte = 200 // libvirt appends suffixes of its own and a file name ends at 255 bytes
)

// Domain is a virtual machine as VMware described it.
type Domain struct {
	// Name is the VM's display name, any Unicode. Characters libvirt refuses
	// are replaced, and the notes say so.
	Name string
	// BIOSUUID is config.uuid; it becomes the domain's UUID, so that the guest
	// sees the SMBIOS UUID it knew. InstanceUUID is config.instanceUuid; it is
	// kept in the metadata. Both may be empty.
	BIOSUUID     string
	InstanceUUID string
	// GuestID is a VirtualMachineGuestOsIdentifier such as "rhel8_64Guest";
	// may be empty.
	GuestID string
	// CPUs counts virtual CPUs, at least 1. CoresPerSocket of 0 means 1.
	CPUs           int
	CoresPerSocket int
	// MemoryMiB is the guest's memory in MiB, at least 1.
	MemoryMiB  int64
	Firmware   Firmware
	SecureBoot bool // needs UEFI
	// NVRAM names the exported VMware .nvram file, for the record only: its
	// format is VMware's own, and no firmware of KVM reads it. May be empty.
	NVRAM string
	// Disks are in boot order.
	Disks []Disk
	NICs  []NIC
	// VideoRAMKiB is VirtualMachineVideoCard.videoRamSizeInKB; 0 when unknown.
	VideoRAMKiB int64
	Clock       Clock
	// OtherDevices names, for an administrator, each device of the VM that has
	// no field here ("virtual TPM", "PCI passthrough device"); each becomes a
	// note.
	OtherDevices []string
}

// Disk is one virtual disk.
type Disk struct {
	// Path is the absolute path of the image, or of the block device when
	// Block is set.
	Path  string
	Block bool
	// Format is "qcow2" or "raw".
	Format string
	// Controller is the controller's type: pvscsi, lsilogic, lsisas1068,
	// buslogic, ide, sata (or ahci), nvme; also the ResourceSubType names of
	// an OVF. Case does not matter.
	Controller string
	// Bus is VirtualController.busNumber (0 in "scsi0:1"), Unit is
	// VirtualDevice.unitNumber (1 in "scsi0:1").
	Bus  int
	Unit int
}

// NIC is one network adapter.
type NIC struct {
	// Model is vmxnet3, e1000e, e1000, pcnet, vmxnet2, vmxnet or sriov; also
	// the vSphere class name (VirtualVmxnet3) or OVF ResourceSubType. Case
	// does not matter.
	Model string
	// MAC is empty when libvirt may choose one.
	MAC string
	// Network is the name of the port group or VMware network.
	Network string
	// Connected is false for an adapter whose cable is pulled.
	Connected bool
}

// Hardware says which devices the guest is to see.
type Hardware string

// The choices. Same (also the empty string) gives the guest the emulated
// counterparts of the devices it has drivers for, so that it starts unchanged;
// Virtio gives it KVM's own faster devices, whose drivers it must have.
const (
	Same   Hardware = "same"
	Virtio Hardware = "virtio"
)

// ParseHardware reads "same" or "virtio"; empty means Same.
func ParseHardware(s string) (Hardware, error) {
	switch Hardware(s) {
	case "", Same:
		return Same, nil
	case Virtio:
		return Virtio, nil
	}
	return "", fmt.Errorf("hardware %q is unknown: it is same or virtio", s)
}

// CPUMode is how much of the host's processor the guest sees.
type CPUMode string

// The modes; the empty string means HostModel. HostModel lets the domain move
// between hosts that are alike; HostPassthrough shows everything the host has
// and ties the domain to it.
const (
	HostModel       CPUMode = "host-model"
	HostPassthrough CPUMode = "host-passthrough"
)

// Options are the choices of whoever runs the migration. The zero value is
// the default of each.
type Options struct {
	Hardware Hardware
	CPU      CPUMode
	// NetworkMap gives for VMware network names what to connect their adapters
	// to; the name AnyNetwork stands for every network not named. A network
	// without an entry is connected to libvirt's network "default", with a
	// note.
	NetworkMap map[string]NetworkTarget
	// NVMe keeps NVMe disks on an emulated NVMe controller. libvirt has it
	// since 11.5 and older ones refuse the domain, so without it NVMe disks
	// become SATA disks, with a note.
	NVMe bool
}

// check refuses what no domain could be made of.
func (d *Domain) check() error {
	switch {
	case d.CPUs < 1 || d.CPUs > maxCPUs:
		return fmt.Errorf("%d CPUs: want 1 to %d", d.CPUs, maxCPUs)
	case d.CoresPerSocket < 0 || d.CoresPerSocket > maxCPUs:
		return fmt.Errorf("%d cores per socket: want 0 to %d", d.CoresPerSocket, maxCPUs)
	case d.MemoryMiB < 1 || d.MemoryMiB > maxMemory:
		return fmt.Errorf("%d MiB of memory: want 1 to %d", d.MemoryMiB, maxMemory)
	case len(d.Disks) > maxDisks:
		return fmt.Errorf("%d disks: want at most %d", len(d.Disks), maxDisks)
	case len(d.NICs) > maxNICs:
		return fmt.Errorf("%d network adapters: want at most %d", len(d.NICs), maxNICs)
	case len(d.OtherDevices) > maxOthers:
		return fmt.Errorf("%d other devices: want at most %d", len(d.OtherDevices), maxOthers)
	}
	switch strings.ToLower(string(d.Firmware)) {
	case "", "bios", "efi", "uefi":
	default:
		return fmt.Errorf("firmware %q is unknown: it is bios or efi", d.Firmware)
	}
	if d.SecureBoot && !d.uefi() {
		return errors.New("secure boot without UEFI firmware")
	}
	switch d.Clock {
	case GuestClock, UTC, LocalTime:
	default:
		return fmt.Errorf("clock %q is unknown: it is utc or localtime", d.Clock)
	}
	seen := map[string]int{}
	for i, disk := range d.Disks {
		if err := disk.check(); err != nil {
			return fmt.Errorf("disk %d: %w", i+1, err)
		}
		at := disk.at()
		if j, dup := seen[at]; dup {
			return fmt.Errorf("disks %d and %d are both at %s", j+1, i+1, at)
		}
		seen[at] = i
	}
	return nil
}

func (d *Domain) uefi() bool {
	f := strings.ToLower(string(d.Firmware))
	return f == "efi" || f == "uefi"
}

func (d *Disk) check() error {
	switch {
	case !strings.HasPrefix(d.Path, "/"):
		return fmt.Errorf("path %q is not absolute", d.Path)
	case !utf8.ValidString(d.Path) || strings.ContainsFunc(d.Path, notXML):
		return fmt.Errorf("path %q holds bytes that XML cannot", d.Path)
	case d.Format != "qcow2" && d.Format != "raw":
		return fmt.Errorf("format %q is unknown: it is qcow2 or raw", d.Format)
	case d.Bus < 0 || d.Bus > maxBus:
		return fmt.Errorf("bus %d: want 0 to %d", d.Bus, maxBus)
	case d.Unit < 0 || d.Unit > maxUnit:
		return fmt.Errorf("unit %d: want 0 to %d", d.Unit, maxUnit)
	}
	return nil
}

// at is the disk's place as VMware writes it: scsi0:1.
func (d *Disk) at() string {
	return fmt.Sprintf("%s%d:%d", family(d.kind()), d.Bus, d.Unit)
}

// notXML reports characters that libvirt refuses in names and paths or that
// XML 1.0 has no way to write.
func notXML(r rune) bool {
	return unicode.IsControl(r) || r == 0xFFFE || r == 0xFFFF
}

// domainName makes of a display name one that libvirt's QEMU driver takes: no
// slash and no control characters, not empty, and short enough for the files
// named after it.
func domainName(name string) (string, bool) {
	clean := strings.Map(func(r rune) rune {
		if r == '/' || r == utf8.RuneError || notXML(r) {
			return '-'
		}
		return r
	}, name)
	clean = strings.TrimSpace(clean)
	for len(clean) > maxNameByte {
		_, size := utf8.DecodeLastRuneInString(clean)
		clean = clean[:len(clean)-size]
	}
	clean = strings.TrimSpace(clean)
	// "." and ".." would make libvirt's per-domain directories escape.
	if clean == "" || clean == "." || clean == ".." {
		clean = "vm"
	}
	return clean, clean != name
}
