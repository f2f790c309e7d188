package boottest

import "strconv"

// nicModels has libvirt's names.
var nicModels = map[string]string{
	"vmxnet3": "vmxnet3",
	"e1000e":  "e1000e",
	"e1000":   "e1000",
	"pcnet":   "pcnet",
	"virtio":  "virtio-net-pci",
}

func (m *machine) devices(e *element) {
	e.skip("emulator", "graphics", "console") // the console is the serial port again
	if e.skip("iommu") > 0 {
		e.fail("there is an IOMMU, whose extended interrupt mode only KVM has")
	}
	// The screen first: it gets the slot where it is in every PC.
	if v := e.maybe("video"); v != nil {
		m.video(v.one("model"))
	}
	for _, c := range e.all("controller") {
		m.controller(c)
	}
	for i, d := range e.all("disk") {
		m.disk(d, "disk"+strconv.Itoa(i))
	}
	for i, n := range e.all("interface") {
		m.nic(n, "net"+strconv.Itoa(i))
	}
	if s := e.maybe("serial"); s != nil {
		m.serial(s)
	}
	if c := e.maybe("channel"); c != nil {
		m.channel(c)
	}
	if in := e.maybe("input"); in != nil {
		in.want("type", "tablet")
		in.want("bus", "usb")
		m.device("usb-tablet", "bus", "usb.0")
	}
	if b := e.maybe("memballoon"); b != nil && b.want("model", "none", "virtio") == "virtio" {
		m.device("virtio-balloon-pci")
	}
	if r := e.maybe("rng"); r != nil {
		m.rng(r)
	}
}

func (m *machine) video(e *element) {
	heads := strconv.Itoa(e.int("heads", 1, 16))
	e.want("primary", "yes")
	if e.want("type", "vga", "virtio") == "virtio" {
		m.device("virtio-vga", "max_outputs", heads)
		return
	}
	kib := e.int("vram", 1<<10, 256<<10)
	m.device("VGA", "vgamem_mb", strconv.Itoa(kib>>10))
}

// nic connects an adapter to a network of its own in which there is nobody. A
// pulled cable is an adapter without a network.
func (m *machine) nic(e *element, id string) {
	e.want("type", "bridge", "network")
	e.skip("source")
	mac := ""
	if a := e.maybe("mac"); a != nil {
		mac = a.attr("address")
	}
	netdev := id
	if l := e.maybe("link"); l != nil && l.want("state", "up", "down") == "down" {
		netdev = ""
	} else {
		m.option("-netdev", "user", "id", id, "restrict", "on")
	}
	model := e.one("model")
	name := model.attr("type")
	if nicModels[name] == "" {
		model.fail("attribute type is %q, which is no network adapter here", name)
		return
	}
	m.device(nicModels[name], "netdev", netdev, "mac", mac)
}

func (m *machine) serial(e *element) {
	e.want("type", "pty")
	target := e.one("target")
	target.want("type", "isa-serial")
	target.want("port", "0")
	target.one("model").want("name", "isa-serial")
	m.device("isa-serial", "chardev", SerialChardev, "index", "0")
}

func (m *machine) channel(e *element) {
	e.want("type", "unix")
	target := e.one("target")
	target.want("type", "virtio")
	// libvirt adds the controller by itself.
	m.device("virtio-serial-pci", "id", "virtio-serial0")
	m.option("-chardev", "null", "id", "channel0")
	m.device("virtserialport", "bus", "virtio-serial0.0", "nr", "1", "chardev", "channel0", "name", target.attr("name"))
}

func (m *machine) rng(e *element) {
	e.want("model", "virtio")
	backend := e.one("backend")
	backend.want("model", "random")
	backend.wantContent("/dev/urandom")
	m.option("-object", "rng-random", "id", "rng0", "filename", "/dev/urandom")
	m.device("virtio-rng-pci", "rng", "rng0")
}
