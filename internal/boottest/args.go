package boottest

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The builds of UEFI firmware for QEMU, as Debian's package ovmf has them, and
// their templates of variables.
const firmwareDir = "/usr/share/OVMF"

type firmware struct{ code, vars string }

var (
	plainUEFI  = firmware{"OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"}
	secureUEFI = firmware{"OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd"}
)

// Bounds of numbers in a document. QEMU has bounds of its own, below these.
const (
	maxCPUs   = 4096
	maxMemory = 1 << 27 // MiB
)

// Args translates a libvirt domain XML into the arguments with which
// qemu-system-x86_64 starts that machine: its chipset, CPUs, memory, firmware,
// disk controllers, disks, network adapters and so on, each as the device that
// libvirt would ask QEMU for, disks at their places and in their boot order.
//
// It is strict: an element, attribute or value it does not know is an error
// with its place, so a machine that starts is the one described. All problems
// found are in the one error, up to a bound. What it understands is what
// package libvirt writes, and some near it.
//
// Of the machine these differ, because it runs anywhere: the CPUs are emulated
// (TCG, with all that QEMU can) and what only KVM has is left out (Hyper-V
// interfaces and their clock, policy of the PIT); an IOMMU is refused. The
// host's side is not that of the document: there is no screen, network
// adapters are connected to a network of QEMU's that leads nowhere, the guest
// agent to nothing, and the first serial port to the character device
// SerialChardev, which the caller adds. PCI slots, which libvirt chooses when
// it defines a domain, are QEMU's choice.
//
// What the guest writes to its disks and UEFI variables is kept in temporary
// files, as if nothing had been written, and dropped. The machine ends when the
// guest restarts.
func Args(domainXML []byte) ([]string, error) {
	root, err := parse(domainXML)
	if err != nil {
		return nil, fmt.Errorf("read domain XML: %w", err)
	}
	if root.name != "domain" {
		return nil, fmt.Errorf("read domain XML: the element is %s, want domain", root.name)
	}
	m := machine{controllers: map[string]controller{}}
	m.domain(root)
	root.leftovers()
	if err := root.problems.err(); err != nil {
		return nil, fmt.Errorf("translate domain XML: %w", err)
	}
	return m.args, nil
}

// machine is the arguments in the making.
type machine struct {
	args []string
	q35  bool
	smm  bool
	// controllers of disks by their id, "scsi0".
	controllers map[string]controller
}

func (m *machine) add(args ...string) { m.args = append(m.args, args...) }

// option adds an argument of QEMU's list form: option("-device", "VGA",
// "vgamem_mb", "16") is -device VGA,vgamem_mb=16. Pairs with an empty value are
// left out.
func (m *machine) option(name, first string, pairs ...string) {
	var b strings.Builder
	b.WriteString(first)
	for pair := range slices.Chunk(pairs, 2) {
		if pair[1] == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		// A comma within a value is written twice.
		b.WriteString(pair[0] + "=" + strings.ReplaceAll(pair[1], ",", ",,"))
	}
	m.add(name, b.String())
}

func (m *machine) device(model string, pairs ...string) { m.option("-device", model, pairs...) }

func (m *machine) domain(e *element) {
	e.want("type", "kvm")
	e.skip("metadata", "on_poweroff", "on_reboot", "on_crash")

	m.add("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-accel", "tcg")
	m.option("-name", "", "guest", e.one("name").wantMatch(`.`))
	if uuid := e.maybe("uuid"); uuid != nil {
		m.add("-uuid", uuid.wantMatch(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`))
	}

	os, features, clock := e.one("os"), e.one("features"), e.one("clock")
	typ := os.one("type")
	typ.wantContent("hvm")
	typ.want("arch", "x86_64")
	name := typ.want("machine", "pc", "q35")
	m.q35 = name == "q35"
	acpi, vmport := m.features(features)
	hpet := m.clock(clock)
	smm := ""
	if m.smm {
		smm = "on"
	}
	m.option("-machine", name, "usb", "off", "acpi", acpi, "vmport", vmport, "smm", smm, "hpet", hpet)
	m.firmware(os)
	m.cpus(e)
	m.memory(e)
	m.devices(e.one("devices"))
}

// state takes an on/off element; it is "" when there is none.
func state(e *element, name string) string {
	c := e.maybe(name)
	if c == nil {
		return ""
	}
	return c.want("state", "on", "off")
}

func (m *machine) features(e *element) (acpi, vmport string) {
	acpi = "off"
	if e.maybe("acpi") != nil {
		acpi = "on"
	}
	e.one("apic") // a CPU without one would be another machine
	m.smm = state(e, "smm") == "on"
	e.skip("hyperv")
	if ioapic := e.maybe("ioapic"); ioapic != nil {
		ioapic.want("driver", "qemu") // without KVM there is no other
	}
	return acpi, state(e, "vmport")
}

func (m *machine) clock(e *element) (hpet string) {
	drift := ""
	base := e.want("offset", "utc", "localtime")
	for _, timer := range e.all("timer") {
		switch timer.want("name", "rtc", "pit", "hpet", "hypervclock") {
		case "rtc":
			timer.want("tickpolicy", "catchup")
			drift = "slew"
		case "pit":
			timer.want("tickpolicy", "delay")
		case "hpet":
			hpet = map[string]string{"yes": "on", "no": "off"}[timer.want("present", "yes", "no")]
		case "hypervclock":
			timer.want("present", "yes", "no")
		}
	}
	m.option("-rtc", "", "base", base, "driftfix", drift)
	return hpet
}

func (m *machine) firmware(e *element) {
	if e.want("firmware", "", "efi") == "" {
		return // SeaBIOS is QEMU's default
	}
	secure, enrolled := "no", "no"
	for _, f := range e.one("firmware").all("feature") {
		enabled := f.want("enabled", "yes", "no")
		if f.want("name", "secure-boot", "enrolled-keys") == "secure-boot" {
			secure = enabled
		} else {
			enrolled = enabled
		}
	}
	loader := "no"
	if l := e.maybe("loader"); l != nil {
		loader = l.want("secure", "yes", "no")
	}
	fw := plainUEFI
	switch {
	case secure != enrolled || secure != loader:
		e.fail("secure boot is %s, with enrolled keys %s and a secure loader %s: want all or none", secure, enrolled, loader)
	case secure == "yes" && (!m.smm || !m.q35):
		e.fail("secure boot needs the machine q35 with SMM")
	case secure == "yes":
		fw = secureUEFI
		// Only code in SMM may write the variables.
		m.option("-global", "", "driver", "cfi.pflash01", "property", "secure", "value", "on")
	}
	m.option("-drive", "", "if", "pflash", "unit", "0", "format", "raw", "readonly", "on", "file", filepath.Join(firmwareDir, fw.code))
	m.option("-drive", "", "if", "pflash", "unit", "1", "format", "raw", "snapshot", "on", "file", filepath.Join(firmwareDir, fw.vars))
}

func (m *machine) cpus(e *element) {
	vcpu, cpu := e.one("vcpu"), e.one("cpu")
	vcpu.want("placement", "static", "")
	n := vcpu.contentInt(1, maxCPUs)
	cpu.want("mode", "host-model", "host-passthrough")
	cpu.want("check", "none", "partial", "full", "") // of the host
	t := cpu.one("topology")
	sockets, cores, threads := t.int("sockets", 1, maxCPUs), t.int("cores", 1, maxCPUs), t.int("threads", 1, maxCPUs)
	if int64(sockets)*int64(cores)*int64(threads) != int64(n) {
		t.fail("%d sockets of %d cores of %d threads are not the %d CPUs", sockets, cores, threads, n)
	}
	m.add("-cpu", "max")
	m.option("-smp", strconv.Itoa(n), "sockets", strconv.Itoa(sockets), "cores", strconv.Itoa(cores), "threads", strconv.Itoa(threads))
}

func (m *machine) memory(e *element) {
	all, current := e.one("memory"), e.one("currentMemory")
	all.want("unit", "MiB")
	current.want("unit", "MiB")
	n := all.contentInt(1, maxMemory)
	if c := current.contentInt(1, maxMemory); c != n {
		current.fail("it is %d MiB of %d: want all", c, n)
	}
	m.option("-m", "", "size", strconv.Itoa(n)+"M")
}
