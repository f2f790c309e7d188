// Package boottest starts a converted disk as the machine that its libvirt
// domain XML describes, in QEMU without KVM, and reads what the guest writes
// to its serial port. BootDisk is such a guest, Args reads the XML, Boot does
// the rest.
//
// It is for tests only. It does not know the code that writes the XML: what
// that code meant shows in what this package makes of the text.
package boottest
