package lab

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Inventory says which VMs the lab has, besides Options.ExtraVMs.
type Inventory int

const (
	// Small has only the VMs that are special in some way; see SpecialVMs.
	Small Inventory = iota
	// Full adds plain ones in nested folders, up to 201 VMs.
	Full
)

// The defaults of Options.
const (
	DefaultUsername     = "administrator@vsphere.local"
	DefaultPassword     = "lab-password"
	DefaultLeaseTimeout = 300 * time.Second
)

// Options says what Start starts. The zero value is usable.
type Options struct {
	Inventory Inventory
	// LeaseTimeout is how long a lease lives without HttpNfcLeaseProgress, to
	// the millisecond; leases announce it in whole seconds, rounded up.
	// Default DefaultLeaseTimeout.
	LeaseTimeout time.Duration
	// BytesPerSecond caps each stream; 0 is no cap. Faults can override it.
	BytesPerSecond int64
	// Username and Password are the only credentials Login takes. Defaults
	// DefaultUsername and DefaultPassword.
	Username, Password string
	// Addr and HostAddr are where vCenter and the ESXi host listen, host:port.
	// Default 127.0.0.1:0, a free port.
	Addr, HostAddr string
	// ExtraVMs are added to the inventory.
	ExtraVMs []VMSpec
}

func (o *Options) setDefaults() {
	if o.LeaseTimeout <= 0 {
		o.LeaseTimeout = DefaultLeaseTimeout
	}
	if o.Username == "" {
		o.Username = DefaultUsername
	}
	if o.Password == "" {
		o.Password = DefaultPassword
	}
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	if o.HostAddr == "" {
		o.HostAddr = "127.0.0.1:0"
	}
}

// Pattern is what a disk holds.
type Pattern int

// The patterns.
const (
	PatternText   Pattern = iota // lines of a log, which compress well
	PatternRandom                // incompressible
	PatternEmpty                 // zeros: a thin disk never written to
	PatternMixed                 // text, random bytes and zeros in turn, in pieces that straddle grains
	PatternSparse                // small pieces of text and random bytes, spread over the disk up to its last byte
)

// DiskSpec describes a disk. The same spec always has the same content.
type DiskSpec struct {
	// Capacity in bytes, a positive multiple of 512.
	Capacity int64
	Pattern  Pattern
	// Seed tells disks of one pattern apart. 0 takes one from the VM's path
	// and the disk's place.
	Seed uint64
	// Allocated is how many bytes from the disk's start the pattern covers (for
	// PatternSparse: how many bytes there are in all, roughly). 0 is the whole
	// disk, or 2 MiB for PatternSparse.
	Allocated int64
	// Head is the bytes at the disk's start, over the pattern: a boot program,
	// a partition table. At most Capacity of them; Start copies it.
	Head []byte
	// Controller is the type of the controller: "lsilogic", "lsilogic-sas",
	// "pvscsi", "sata", "nvme" or "ide". Default the VM's.
	Controller string
	// Independent disks are not part of snapshots.
	Independent bool
	// RDM makes the disk a raw device mapping, which ExportVm refuses.
	RDM bool
}

// SnapshotSpec describes a snapshot; they form one chain.
type SnapshotSpec struct{ Name, Description string }

// VMSpec describes a VM. Only Path is needed.
type VMSpec struct {
	// Path is the inventory path /DC0/vm/folder/name; folders are made as
	// needed. A slash in a name is written %2f, as vSphere does.
	Path  string
	Disks []DiskSpec
	// CPUs and MemoryMB default to 2 and 2048.
	CPUs, MemoryMB int
	// GuestID defaults to "ubuntu64Guest".
	GuestID string
	// Controller is the default of the disks'; its default is "lsilogic".
	Controller string
	// NIC is "vmxnet3" (default), "e1000", "e1000e" or "none".
	NIC string
	// UEFI makes the firmware EFI and adds an NVRAM file to exports. NVRAM adds
	// one to a BIOS VM.
	UEFI, SecureBoot, NVRAM bool
	// CDROM adds a drive. ISO puts an image into one, by the name of a file in
	// the datastore's folder iso; ISOMissing makes that file not exist.
	CDROM      bool
	ISO        string
	ISOMissing bool
	PoweredOn  bool
	// NoTools leaves VMware Tools not running in a VM that is powered on.
	NoTools  bool
	Template bool
	// Encrypted VMs, and those with a virtual TPM, cannot be exported.
	Encrypted, TPM bool
	Snapshots      []SnapshotSpec
	// Note is one line for people who look for a VM to try something on.
	Note string
}

// parts splits the path into folders and the VM's name, each still escaped.
func (s *VMSpec) parts() (folders []string, name string, err error) {
	rest, ok := strings.CutPrefix(s.Path, "/"+datacenter+"/vm/")
	if !ok {
		return nil, "", fmt.Errorf("path %q does not begin with /%s/vm/", s.Path, datacenter)
	}
	all := strings.Split(rest, "/")
	for _, p := range all {
		if _, err := url.PathUnescape(p); p == "" || err != nil {
			return nil, "", fmt.Errorf("path %q has a bad part %q", s.Path, p)
		}
	}
	return all[:len(all)-1], all[len(all)-1], nil
}

func (s *VMSpec) setDefaults() {
	if s.CPUs == 0 {
		s.CPUs = 2
	}
	if s.MemoryMB == 0 {
		s.MemoryMB = 2048
	}
	if s.GuestID == "" {
		s.GuestID = "ubuntu64Guest"
	}
	if s.Controller == "" {
		s.Controller = "lsilogic"
	}
	if s.NIC == "" {
		s.NIC = "vmxnet3"
	}
	if len(s.Disks) == 0 {
		s.Disks = []DiskSpec{{Capacity: mib}}
	}
}

func (d *DiskSpec) check() error {
	if d.Capacity <= 0 || d.Capacity%sectorSize != 0 {
		return fmt.Errorf("disk capacity is %d, want a positive multiple of %d", d.Capacity, sectorSize)
	}
	if d.Allocated < 0 || d.Allocated > d.Capacity {
		return fmt.Errorf("disk has %d bytes allocated of %d", d.Allocated, d.Capacity)
	}
	if int64(len(d.Head)) > d.Capacity {
		return fmt.Errorf("disk has a head of %d bytes, want at most its capacity, %d", len(d.Head), d.Capacity)
	}
	if d.Pattern < PatternText || d.Pattern > PatternSparse {
		return errors.New("disk has an unknown pattern")
	}
	return nil
}

const (
	mib        = 1 << 20
	gib        = 1 << 30
	tib        = 1 << 40
	sectorSize = 512
	datacenter = "DC0"
	datastore  = "LocalDS_0"
)
