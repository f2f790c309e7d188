package lab

import (
	"encoding/xml"
	"fmt"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// CIM resource types of an OVF's hardware items (DSP0243, CIM
// ResourceAllocationSettingData.ResourceType).
const (
	resourceCPU      = 3
	resourceMemory   = 4
	resourceIDE      = 5
	resourceSCSI     = 6
	resourceEthernet = 10
	resourceCDROM    = 15
	resourceDisk     = 17
	resourceOther    = 20
)

// envelope writes the OVF descriptor of a VM as a vCenter does. Without files
// it has placeholders.
func envelope(machine *simulator.VirtualMachine, p types.OvfCreateDescriptorParams) string {
	w := &xmlWriter{}
	w.printf(`<?xml version="1.0" encoding="UTF-8"?>` + "\n" +
		`<Envelope vmw:buildId="build-24022510" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:cim="http://schemas.dmtf.org/wbem/wscim/1/common"` +
		` xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"` +
		` xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"` +
		` xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">` + "\n")
	devices := object.VirtualDeviceList(machine.Config.Hardware.Device)
	disks := devices.SelectByType((*types.VirtualDisk)(nil))
	w.printf("  <References>\n")
	for i, f := range p.OvfFiles {
		w.printf("    <File ovf:href=%s ovf:id=\"file%d\" ovf:size=\"%d\"/>\n", w.attr(f.Path), i+1, f.Size)
	}
	if len(p.OvfFiles) == 0 {
		for i := range disks {
			w.printf("    <File ovf:href=\"disk-%d.vmdk\" ovf:id=\"file%d\"/>\n", i, i+1)
		}
	}
	w.printf("  </References>\n  <DiskSection>\n    <Info>List of the virtual disks</Info>\n")
	for i := range disks {
		disk, ok := disks[i].(*types.VirtualDisk)
		if !ok {
			continue // they were selected by this type
		}
		var file types.OvfFile
		ref := i + 1 // of the placeholder
		if len(p.OvfFiles) > 0 {
			ref = 0
		}
		for k, f := range p.OvfFiles {
			if strings.HasSuffix(f.DeviceId, "/"+diskKey(machine, i)) {
				file, ref = f, k+1
			}
		}
		w.printf("    <Disk ovf:capacity=\"%d\" ovf:capacityAllocationUnits=\"byte\" ovf:diskId=\"vmdisk%d\""+
			" ovf:format=\"http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized\"", disk.CapacityInBytes, i+1)
		if ref > 0 { // a disk that is not among the files is an empty one
			w.printf(" ovf:fileRef=\"file%d\"", ref)
		}
		if file.PopulatedSize > 0 {
			w.printf(" ovf:populatedSize=\"%d\"", file.PopulatedSize)
		}
		w.printf("/>\n")
	}
	name := p.Name
	if name == "" {
		name = machine.Name
	}
	w.printf("  </DiskSection>\n  <NetworkSection>\n    <Info>The list of logical networks</Info>\n" +
		"    <Network ovf:name=\"VM Network\">\n      <Description>The VM Network network</Description>\n    </Network>\n  </NetworkSection>\n")
	w.printf("  <VirtualSystem ovf:id=%s>\n    <Info>A Virtual system</Info>\n    <Name>%s</Name>\n", w.attr(name), w.text(name))
	w.printf("    <OperatingSystemSection ovf:id=\"94\" vmw:osType=%s>\n      <Info>The operating system installed</Info>\n    </OperatingSystemSection>\n",
		w.attr(machine.Config.GuestId))
	w.printf("    <VirtualHardwareSection>\n      <Info>Virtual hardware requirements</Info>\n")
	w.printf("      <System>\n        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n        <vssd:InstanceID>0</vssd:InstanceID>\n"+
		"        <vssd:VirtualSystemType>%s</vssd:VirtualSystemType>\n      </System>\n", w.text(machine.Config.Version))
	w.item(resourceCPU, 1, "virtual CPU(s)", fmt.Sprintf("<rasd:VirtualQuantity>%d</rasd:VirtualQuantity>", machine.Config.Hardware.NumCPU))
	w.item(resourceMemory, 2, "memory", fmt.Sprintf("<rasd:VirtualQuantity>%d</rasd:VirtualQuantity>", machine.Config.Hardware.MemoryMB))
	n := 0
	for _, d := range devices {
		id := int(d.GetVirtualDevice().Key)
		label := devices.Name(d)
		parent := fmt.Sprintf("<rasd:Parent>%d</rasd:Parent>", d.GetVirtualDevice().ControllerKey)
		switch d := d.(type) {
		case *types.VirtualDisk:
			n++
			w.item(resourceDisk, id, label, fmt.Sprintf("<rasd:HostResource>ovf:/disk/vmdisk%d</rasd:HostResource>%s", n, parent))
		case *types.VirtualCdrom:
			w.item(resourceCDROM, id, label, parent)
		case types.BaseVirtualEthernetCard:
			w.item(resourceEthernet, id, label, "<rasd:Connection>VM Network</rasd:Connection>")
		case types.BaseVirtualSCSIController:
			w.item(resourceSCSI, id, label, fmt.Sprintf("<rasd:Address>%d</rasd:Address>", d.GetVirtualSCSIController().BusNumber))
		case *types.VirtualIDEController:
			w.item(resourceIDE, id, label, fmt.Sprintf("<rasd:Address>%d</rasd:Address>", d.BusNumber))
		case *types.VirtualAHCIController:
			w.item(resourceOther, id, label, "<rasd:ResourceSubType>vmware.sata.ahci</rasd:ResourceSubType>")
		case *types.VirtualNVMEController:
			w.item(resourceOther, id, label, "<rasd:ResourceSubType>vmware.nvme.controller</rasd:ResourceSubType>")
		}
	}
	w.printf("      <vmw:Config ovf:required=\"false\" vmw:key=\"firmware\" vmw:value=%s/>\n", w.attr(machine.Config.Firmware))
	for i, f := range p.OvfFiles {
		if strings.HasSuffix(f.DeviceId, "/nvram") {
			w.printf("      <vmw:ExtraConfig ovf:required=\"false\" vmw:key=\"nvram\" vmw:value=\"ovf:/file/file%d\"/>\n", i+1)
		}
	}
	w.printf("    </VirtualHardwareSection>\n  </VirtualSystem>\n</Envelope>\n")
	return w.b.String()
}

type xmlWriter struct{ b strings.Builder }

func (w *xmlWriter) printf(format string, args ...any) { fmt.Fprintf(&w.b, format, args...) }

func (w *xmlWriter) text(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder never fails
	return b.String()
}

func (w *xmlWriter) attr(s string) string { return `"` + w.text(s) + `"` }

func (w *xmlWriter) item(kind, id int, name, body string) {
	w.printf("      <Item>\n        <rasd:ElementName>%s</rasd:ElementName>\n        <rasd:InstanceID>%d</rasd:InstanceID>\n"+
		"        <rasd:ResourceType>%d</rasd:ResourceType>\n        %s\n      </Item>\n", w.text(name), id, kind, body)
}
