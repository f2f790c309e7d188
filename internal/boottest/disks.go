package boottest

import (
	"path/filepath"
	"regexp"
	"strconv"
)

// controller is what a disk has to know of the controller it is on: its id, or
// the name that the chipset's has, and for SCSI the highest target and logical
// unit there.
type controller struct {
	id            string
	maxID, maxLUN int
	// parallel is a bus whose targets libvirt calls units.
	parallel bool
}

// scsiModels has libvirt's names and QEMU's devices. QEMU has no BusLogic.
var scsiModels = map[string]struct {
	device string
	controller
}{
	"vmpvscsi":    {"pvscsi", controller{maxID: 63}},
	"lsisas1068":  {"mptsas1068", controller{maxID: 7}},
	"lsilogic":    {"lsi53c895a", controller{maxID: 7, parallel: true}},
	"virtio-scsi": {"virtio-scsi-pci", controller{maxID: 255, maxLUN: 16383}},
}

// Bounds on places in the machine, from QEMU's devices.
const (
	maxController = 255
	maxAHCIPort   = 5
	maxBootOrder  = 1 << 16
)

func (m *machine) controller(e *element) {
	typ, model := e.attr("type"), e.attr("model")
	index := e.int("index", 0, maxController)
	c := controller{id: typ + strconv.Itoa(index)}
	if _, twice := m.controllers[c.id]; twice {
		e.fail("there are two controllers of type %q with index %d", typ, index)
	}
	place := c.id
	switch scsi := scsiModels[model]; {
	case typ == "scsi" && scsi.device != "":
		c = scsi.controller
		c.id = place
		m.device(scsi.device, "id", place)
	case typ == "ide" && model == "" && index == 0 && !m.q35, typ == "sata" && model == "" && index == 0 && m.q35:
		c.id = "ide" // part of the chipset, where QEMU gives it this name
	case typ == "sata" && model == "":
		m.device("ich9-ahci", "id", place)
	case typ == "nvme" && model == "":
		m.device("nvme", "id", place, "serial", e.one("serial").content())
	case typ == "usb" && model == "piix3-uhci" && index == 0:
		m.device("piix3-usb-uhci", "id", "usb")
	case typ == "usb" && model == "qemu-xhci" && index == 0:
		m.device("qemu-xhci", "id", "usb")
	default:
		e.fail("the machine has no controller of type %q, model %q, index %d", typ, model, index)
	}
	m.controllers[place] = c
}

// nvmeName is how libvirt names the place of an NVMe disk: controller and
// namespace. QEMU takes namespaces 1 to 256.
var nvmeName = regexp.MustCompile(`^nvme([0-9]{1,3})n([1-9][0-9]{0,2})$`)

func (m *machine) disk(e *element, drive string) {
	e.want("device", "disk")
	m.drive(e, drive)
	order := ""
	if b := e.maybe("boot"); b != nil {
		order = strconv.Itoa(b.int("order", 1, maxBootOrder))
	}
	target := e.one("target")
	name, bus := target.attr("dev"), target.want("bus", "scsi", "sata", "ide", "nvme", "virtio")
	var device string
	var place []string
	switch bus {
	case "virtio":
		device = "virtio-blk-pci"
	case "nvme":
		device = "nvme-ns"
		at := nvmeName.FindStringSubmatch(name)
		if at == nil {
			target.fail("attribute dev is %q, want a name like nvme0n1", name)
			return
		}
		place = []string{"bus", m.on(target, bus, at[1]).id, "nsid", at[2]}
	case "scsi", "sata", "ide":
		device, place = m.address(e.one("address"), bus)
	}
	m.device(device, append(place, "drive", drive, "bootindex", order)...)
}

// on finds a controller.
func (m *machine) on(e *element, typ, index string) controller {
	c, ok := m.controllers[typ+index]
	if !ok {
		e.fail("there is no controller of type %q with index %q", typ, index)
	}
	return c
}

// address reads where on a controller a disk is.
func (m *machine) address(e *element, bus string) (device string, place []string) {
	e.want("type", "drive")
	c := m.on(e, bus, e.attr("controller"))
	switch bus {
	case "ide":
		e.want("target", "0")
		channel, unit := e.want("bus", "0", "1"), e.want("unit", "0", "1")
		return "ide-hd", []string{"bus", c.id + "." + channel, "unit", unit}
	case "sata":
		e.want("bus", "0")
		e.want("target", "0")
		return "ide-hd", []string{"bus", c.id + "." + strconv.Itoa(e.int("unit", 0, maxAHCIPort))}
	}
	e.want("bus", "0")
	id, lun := "target", "unit"
	if c.parallel {
		id, lun = lun, id
	}
	return "scsi-hd", []string{
		"bus", c.id + ".0", "channel", "0",
		"scsi-id", strconv.Itoa(e.int(id, 0, c.maxID)), "lun", strconv.Itoa(e.int(lun, 0, c.maxLUN)),
	}
}

// drive is the host's side of a disk. How the host reads the file (its cache,
// its kind of I/O) makes no difference to the guest and is left out.
func (m *machine) drive(e *element, id string) {
	driver := e.one("driver")
	driver.want("name", "qemu")
	driver.want("cache", "", "none")
	driver.want("io", "", "native")
	format := driver.want("type", "qcow2", "raw")
	discard := driver.want("discard", "", "unmap", "ignore")

	source, kind, attr := e.one("source"), "file", "file"
	if e.want("type", "file", "block") == "block" {
		kind, attr = "host_device", "dev"
	}
	path := source.attr(attr)
	if !filepath.IsAbs(path) {
		source.fail("attribute %s is %q, want an absolute path", attr, path)
	}
	m.option("-drive", "", "if", "none", "id", id, "format", format, "file.driver", kind, "file.filename", path, "discard", discard, "snapshot", "on")
}
