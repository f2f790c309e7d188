package vsphere

// About is what a server says of itself, and who is logged in.
type About struct {
	Host         string // host[:port] of the URL that was connected to
	FullName     string // "VMware vCenter Server 8.0.2 build-22617221"
	Version      string // "8.0.2"
	APIVersion   string // "8.0.2.0"
	InstanceUUID string // identifies a vCenter; empty for an ESXi host
	VCenter      bool   // false for a standalone ESXi host
	User         string // the session's user as the server spells it
}

// VMSummary is one row of the inventory. What the server does not know of a
// VM (an inaccessible or orphaned one has no configuration) is zero.
type VMSummary struct {
	// Path is the inventory path, "/dc/vm/folder/name". A slash that belongs
	// to a name stands there as %2f.
	Path string
	// Name is the VM's own name with %2f, %5c and %25 decoded.
	Name         string
	MoRef        string // value of the managed object reference: "vm-123"
	InstanceUUID string // VirtualMachineConfigInfo.instanceUuid
	PowerState   string // poweredOn, poweredOff or suspended
	GuestOS      string // full name: "Debian GNU/Linux 12 (64-bit)"
	GuestID      string // VirtualMachineGuestOsIdentifier: "debian12_64Guest"
	Host         string // name of the ESXi host it runs on
	CPUs         int
	MemoryMB     int
	Committed    int64 // bytes its files take on the datastores
	Uncommitted  int64 // bytes its thin disks may still grow
	Template     bool
	HasSnapshots bool
	Firmware     string // bios or efi
}

// VM is what matters of a VM for an export.
type VM struct {
	VMSummary
	BIOSUUID        string // VirtualMachineConfigInfo.uuid
	HardwareVersion string // "vmx-19"
	// ChangeVersion changes whenever the VM is reconfigured.
	ChangeVersion  string
	SecureBoot     bool
	Encrypted      bool
	HasTPM         bool
	CoresPerSocket int
	Disks          []Disk
	NICs           []NIC
	CDROMs         []CDROM
	Controllers    []Controller
	VideoRAM       int64 // bytes (VirtualMachineVideoCard.videoRamSizeInKB), 0 when unknown
	// OtherDevices are the labels of devices that no field here stands for: a
	// floppy drive, a serial port, a USB or PCI device of the host.
	OtherDevices []string
	Snapshots    []string // names, depth first
	Blockers     []Blocker
}

// Disk is one virtual disk.
type Disk struct {
	Key   int32  // VirtualDevice.key
	Label string // "Hard disk 1"
	// Controller is the API name of the controller's type:
	// ParaVirtualSCSIController, VirtualAHCIController.
	Controller string
	Bus, Unit  int   // bus number of the controller, unit number on it
	Capacity   int64 // bytes the guest sees
	// Allocated is what its files take on the datastore, in bytes, 0 when the
	// server does not say (VirtualMachineFileLayoutEx).
	Allocated int64
	Thin      bool
	Mode      string // persistent, independent_persistent, ...
	RDM       bool   // raw device mapping
	Datastore string // name, from File
	File      string // "[datastore] folder/name.vmdk"
	// ContentID changes with the first write after the disk was opened
	// (VirtualDiskFlatVer2BackingInfo.contentId); may be empty.
	ContentID string
}

// NIC is one network adapter.
type NIC struct {
	Label     string // "Network adapter 1"
	Type      string // vmxnet3, e1000, e1000e, pcnet32, sriovethernetcard
	MAC       string
	Network   string // name of the network or port group
	Connected bool   // now; false for a VM that is powered off
	// StartConnected says that it is connected when the VM is powered on.
	StartConnected bool
}

// CDROM is one CD-ROM drive.
type CDROM struct {
	Key       int32  // VirtualDevice.key
	Label     string // "CD/DVD drive 1"
	ISO       string // "[datastore] file.iso"; empty when no image is in it
	Connected bool
}

// Controller is one disk controller.
type Controller struct {
	Key   int32
	Label string // "SCSI controller 0"
	Type  string // API name of its type
	Bus   int
}

// Blocker is a reason why the host will or may refuse an export.
type Blocker struct {
	What, Advice string
	// PowerState marks a VM that is not powered off: a shutdown or a snapshot
	// helps.
	PowerState bool
	// Media marks an image in a CD-ROM drive: removing the drive helps.
	Media bool
	// Certain is false for a mere risk: an ISO image is exported without
	// trouble unless its file is gone.
	Certain bool
}

// DescriptorParams says what an OVF descriptor shall name.
type DescriptorParams struct {
	Name string // ovf:id of the virtual system
	// SnapshotMoRef is the snapshot that was exported; empty for the VM as it
	// is now.
	SnapshotMoRef string
	Files         []DescriptorFile
	// IncludeMedia keeps CD-ROM and floppy images that are among Files.
	IncludeMedia bool
}

// DescriptorFile is one exported file. Sizes are bytes; Capacity and
// PopulatedSize are set for disks only and may be 0.
type DescriptorFile struct {
	Key                           string // the lease item's key
	Path                          string // relative to the descriptor, with forward slashes
	Size, Capacity, PopulatedSize int64
}

// Descriptor is an OVF envelope made by the server.
type Descriptor struct {
	XML      []byte
	Warnings []string
}

// ItemKind says what a file of a lease is.
type ItemKind string

// The kinds of items.
const (
	ItemDisk  ItemKind = "disk"
	ItemNVRAM ItemKind = "nvram" // UEFI variables
	ItemMedia ItemKind = "media" // CD-ROM or floppy image
	ItemOther ItemKind = "other"
)

// ManifestEntry is what the host says it has sent for one item
// (HttpNfcLeaseManifestEntry). Hashes are lower case hexadecimal; empty
// hashes and zero sizes were not given.
type ManifestEntry struct {
	Key           string // the lease item's key
	SHA1          string
	Checksum      string
	ChecksumType  string // sha1 or sha256
	Disk          bool
	Size          int64 // bytes sent
	Capacity      int64 // bytes of guest address space
	PopulatedSize int64 // bytes of it that hold data
}
