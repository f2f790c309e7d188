package libvirt

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// The controller types of VMware, as this package names them.
const (
	kindPVSCSI   = "pvscsi"
	kindLSILogic = "lsilogic"
	kindLSISAS   = "lsisas1068"
	kindBusLogic = "buslogic"
	kindIDE      = "ide"
	kindSATA     = "sata"
	kindNVMe     = "nvme"
	kindUnknown  = ""
)

// kind reads the controller's type in the spellings of vmx files, vSphere
// classes and OVF's ResourceSubType.
func (d *Disk) kind() string {
	switch strings.TrimSuffix(strings.ToLower(d.Controller), "controller") {
	case "pvscsi", "virtualscsi", "paravirtualscsi":
		return kindPVSCSI
	case "lsilogic", "virtuallsilogic":
		return kindLSILogic
	case "lsisas1068", "lsilogicsas", "virtuallsilogicsas":
		return kindLSISAS
	case "buslogic", "virtualbuslogic":
		return kindBusLogic
	case "ide", "virtualide":
		return kindIDE
	case "sata", "ahci", "vmware.sata.ahci", "virtualahci", "virtualsata":
		return kindSATA
	case "nvme", "vmware.nvme.", "vmware.nvme", "virtualnvme":
		return kindNVMe
	}
	return kindUnknown
}

// family is the word in front of VMware's bus numbers: all SCSI controllers
// of a VM share one numbering.
func family(kind string) string {
	switch kind {
	case kindIDE, kindSATA, kindNVMe:
		return kind
	}
	return "scsi"
}

// shape is a kind of libvirt controller: its type and model, and how many
// disks one takes.
type shape struct {
	bus    string // also the controller's type
	model  string
	places int
}

// The places are those of QEMU's devices: vmw_pvscsi has 64 targets,
// mptsas1068 has 8 ports, of which SeaBIOS does not boot the last, ICH9 AHCI 6, and PIIX3 two channels of two drives.
// Except for virtio none of the SCSI ones takes a logical unit other than 0,
// so a disk's VMware unit becomes its target.
var (
	shapePVSCSI = shape{"scsi", "vmpvscsi", 64}
	shapeLSISAS = shape{"scsi", "lsisas1068", 7}
	shapeVirtio = shape{"scsi", "virtio-scsi", 64}
	shapeIDE    = shape{"ide", "", 4}
	shapeSATA   = shape{"sata", "", 6}
	shapeNVMe   = shape{"nvme", "", 256}
)

// controller is one controller of the domain. Its index in libvirt is its
// position among those with the same bus: libvirt fills a gap in the numbering
// with a controller of its own choosing.
type controller struct {
	shape
	bus0  int // VMware's bus number; -1 for one that VMware does not have
	index uint
	used  map[int]bool
}

// want is where a disk should go, before it is known whether there is room.
type want struct {
	disk  int // index in Domain.Disks
	shape shape
	bus   int // VMware's bus number, or -1: anywhere
	place int
}

// place is where a disk went.
type place struct {
	on *controller
	at int
}

// wanted decides what kind of controller a disk gets when the guest is to see
// the hardware it knows, and the firmware is to start it.
func (b *builder) wanted(i int) want {
	w := b.counterpart(i)
	if i > 0 || !b.spec.uefi() || w.shape != shapePVSCSI && w.shape != shapeLSISAS {
		return w
	}
	// Builds of OVMF leave its drivers for both out (PVSCSI_ENABLE and
	// MPT_SCSI_ENABLE are off in edk2, and in Debian 12 too), and
	// a firmware that does not see the disk starts nothing. SeaBIOS has them.
	b.note("The boot disk at %s became a SATA disk, because UEFI firmware for KVM does not boot from its SCSI controller; the guest needs an AHCI driver that is there when it boots (in Linux: in its initramfs).",
		b.spec.Disks[i].at())
	return want{disk: i, shape: shapeSATA, bus: -1}
}

// counterpart is the emulated controller nearest to VMware's.
func (b *builder) counterpart(i int) want {
	d := &b.spec.Disks[i]
	w := want{disk: i, bus: d.Bus, place: d.Unit}
	anywhere := func(s shape) want { return want{disk: i, shape: s, bus: -1} }
	kind := d.kind()
	switch {
	case kind == kindPVSCSI:
		w.shape = shapePVSCSI
		return w
	case kind == kindLSISAS:
		w.shape = shapeLSISAS
		return w
	case kind == kindSATA:
		w.shape = shapeSATA
		return w
	case kind == kindIDE && b.q35():
		b.note("The IDE disk at %s became a SATA disk: the q35 machine has no IDE.", d.at())
		return anywhere(shapeSATA)
	case kind == kindIDE:
		// One PIIX3 stands for VMware's two IDE controllers, one per channel.
		if d.Bus > 1 || d.Unit > 1 {
			return anywhere(shapeIDE)
		}
		w.shape, w.bus, w.place = shapeIDE, 0, 2*d.Bus+d.Unit
		return w
	case kind == kindNVMe && b.opts.NVMe:
		w.shape = shapeNVMe
		return w
	case kind == kindNVMe:
		b.note("The NVMe disk at %s became a SATA disk, because libvirt before 11.5 has no NVMe; the guest needs an AHCI driver that is there when it boots.", d.at())
		return anywhere(shapeSATA)
	case kind == kindLSILogic && !b.guest.legacy:
		// What libvirt calls lsilogic is a 53C895A. VMware's is a 53C1030, of
		// the same Fusion MPT family as the SAS 1068: guests that know the one
		// mostly bring the driver for the other, and newer Windows has none for
		// the 53C895A.
		b.note("SCSI controller %d is an LSI Logic Parallel, which KVM does not have; it became an LSI Logic SAS 1068, for which the guest needs a driver (mptsas in Linux, LSI_SAS in Windows).", d.Bus)
		w.shape = shapeLSISAS
		return w
	case (kind == kindLSILogic || kind == kindBusLogic) && !b.q35():
		b.note("The disk at %s became an IDE disk: KVM does not have the SCSI controller that it is on (%s).", d.at(), kind)
		return anywhere(shapeIDE)
	}
	name := d.Controller
	if name == "" {
		name = "unknown"
	}
	b.note("The disk at %s became a SATA disk: KVM does not have the controller that it is on (%q).", d.at(), name)
	return anywhere(shapeSATA)
}

// arrange gives every disk a place. Disks keep VMware's controller and unit
// where the emulated controller is wide enough; the others go to free places,
// on further controllers when there are none.
func (b *builder) arrange() []place {
	wants := make([]want, len(b.spec.Disks))
	for i := range wants {
		if b.opts.Hardware == Virtio {
			// virtio-scsi and not virtio-blk: the guest keeps its sdX names, and
			// one PCI slot serves all disks.
			wants[i] = want{disk: i, shape: shapeVirtio, bus: i / shapeVirtio.places, place: i % shapeVirtio.places}
		} else {
			wants[i] = b.wanted(i)
		}
	}
	order := slices.Clone(wants)
	slices.SortStableFunc(order, func(x, y want) int { return cmp.Or(cmp.Compare(x.bus, y.bus), cmp.Compare(x.place, y.place)) })

	var all []*controller
	add := func(s shape, bus int) *controller {
		c := &controller{shape: s, bus0: bus, used: map[int]bool{}}
		for _, other := range all {
			if other.bus == s.bus {
				c.index++
			}
		}
		all = append(all, c)
		return c
	}
	places := make([]place, len(wants))
	var homeless []want
	for _, w := range order {
		if w.bus < 0 {
			continue
		}
		if w.place >= w.shape.places {
			homeless = append(homeless, w)
			continue
		}
		i := slices.IndexFunc(all, func(c *controller) bool { return c.shape == w.shape && c.bus0 == w.bus })
		var c *controller
		if i < 0 {
			c = add(w.shape, w.bus)
		} else {
			c = all[i]
		}
		c.used[w.place] = true
		places[w.disk] = place{c, w.place}
	}
	for _, w := range homeless {
		d := &b.spec.Disks[w.disk]
		b.note("The disk at %s moved to another place: the emulated controller takes %d disks.", d.at(), w.shape.places)
	}
	// In the order of the disks, so that what has no place of its own keeps
	// the sequence.
	for _, w := range wants {
		if w.bus < 0 {
			homeless = append(homeless, w)
		}
	}
	for _, w := range homeless {
		c := free(all, w.shape)
		if c == nil && w.shape == shapeIDE && slices.ContainsFunc(all, func(c *controller) bool { return c.shape == shapeIDE }) {
			// A machine has one IDE controller.
			b.note("The disk at %s became a SATA disk: all four places for IDE are taken.", b.spec.Disks[w.disk].at())
			w.shape = shapeSATA
			c = free(all, w.shape)
		}
		if c == nil {
			c = add(w.shape, -1)
		}
		at := 0
		for c.used[at] {
			at++
		}
		c.used[at] = true
		places[w.disk] = place{c, at}
	}
	for _, c := range all {
		out := libvirtxml.DomainController{Type: c.bus, Index: &c.index, Model: c.model}
		if c.shape == shapeNVMe {
			// QEMU refuses an NVMe controller without a serial number.
			out.NVME = &libvirtxml.DomainControllerNVME{Serial: fmt.Sprintf("hyper2kvm-nvme%d", c.index)}
		}
		b.devices.Controllers = append(b.devices.Controllers, out)
	}
	return places
}

// free finds a controller of that shape with a free place.
func free(all []*controller, s shape) *controller {
	for _, c := range all {
		if c.shape == s && len(c.used) < s.places {
			return c
		}
	}
	return nil
}

// disks maps the disks with their controllers.
func (b *builder) disks() {
	sd := 0
	for i, p := range b.arrange() {
		d := &b.spec.Disks[i]
		out := libvirtxml.DomainDisk{
			Device: "disk",
			Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: d.Format, Discard: "unmap"},
			Target: &libvirtxml.DomainDiskTarget{Bus: p.on.bus},
			Boot:   &libvirtxml.DomainDeviceBoot{Order: uint(i) + 1},
		}
		if d.Block {
			// A device's own cache is the host's business: going through the
			// page cache would only cost memory.
			out.Driver.Cache, out.Driver.IO = "none", "native"
			out.Source = &libvirtxml.DomainDiskSource{Block: &libvirtxml.DomainDiskSourceBlock{Dev: d.Path}}
		} else {
			out.Source = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: d.Path}}
		}
		address := libvirtxml.DomainAddressDrive{Controller: &p.on.index, Bus: new(uint), Target: new(uint), Unit: new(uint)}
		switch at := uint(p.at); p.on.bus {
		case "ide":
			out.Target.Dev = "hd" + letters(p.at)
			*address.Bus, *address.Unit = at/2, at%2
		case "sata":
			out.Target.Dev = "sd" + letters(sd)
			*address.Unit = at
			sd++
		case "scsi":
			out.Target.Dev = "sd" + letters(sd)
			*address.Target = at
			sd++
		}
		if p.on.shape == shapeNVMe {
			// The name says which namespace of which controller; libvirt makes
			// the address of it.
			out.Target.Dev = fmt.Sprintf("nvme%dn%d", p.on.index, p.at+1)
		} else {
			out.Address = &libvirtxml.DomainAddress{Drive: &address}
		}
		b.devices.Disks = append(b.devices.Disks, out)
	}
	if len(b.spec.Disks) == 0 {
		b.note("The VM has no disks.")
	}
}

// letters counts as device names do: a to z, aa, ab.
func letters(n int) string {
	var s string
	for n++; n > 0; n = (n - 1) / 26 {
		s = string(rune('a'+(n-1)%26)) + s
	}
	return s
}
