package boottest

import (
	"testing"

	"github.com/hyper2kvm/hyper2kvm/internal/libvirt"
)

// TestUEFIFindsDisk: a machine with UEFI firmware starts, and its firmware
// reads the first disk in the boot order. The disk has no loader for it, and
// the firmware says so with the name and the place of the disk, which it knows
// from nobody but the disk. VMware's SCSI controllers are not here: edk2 has
// drivers for them, but builds of it, Debian's too, leave them out.
func TestUEFIFindsDisk(t *testing.T) {
	img := convert(t)[2]
	for _, tt := range []struct {
		name, controller string
		secure           bool
		opts             libvirt.Options
		device, want     string
	}{
		{"sata", "sata", false, libvirt.Options{}, "ide-hd", `"UEFI QEMU HARDDISK QM00001 " from PciRoot(0x0)/Pci(0x1F,0x2)/Sata(0x0,`},
		{"sata with secure boot", "sata", true, libvirt.Options{}, "ide-hd", `"UEFI QEMU HARDDISK QM00001 " from PciRoot(0x0)/Pci(0x1F,0x2)/Sata(0x0,`},
		{"virtio", "pvscsi", false, libvirt.Options{Hardware: libvirt.Virtio}, "virtio-scsi-pci", `"UEFI QEMU QEMU HARDDISK " from PciRoot(0x0)/`},
		{"nvme", "nvme", false, libvirt.Options{NVMe: true}, "nvme-ns", `"UEFI QEMU NVMe Ctrl hyper2kvm-nvme0 1" from PciRoot(0x0)/`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			spec := vm(linux, 1, "e1000e")
			spec.Firmware, spec.SecureBoot, spec.MemoryMiB = libvirt.UEFI, tt.secure, 256
			spec.Disks = []libvirt.Disk{{Path: img.path, Format: img.format, Controller: tt.controller}}
			boot(t, spec, tt.opts, tt.device, tt.want)
		})
	}
}
