// Package vmdk reads and writes stream-optimized VMDK, the form in which an
// ESXi host sends a disk: a header, a chain of compressed grains in rising
// order with their tables behind them, and a footer. The layout is that of
// VMware's "Virtual Disk Format 5.0"; the one qemu-img writes, with the tables
// in front, is read as well.
//
// It also reads disks as they are kept in local files: see OpenDisk.
//
// The package knows bytes only, in streams and behind io.ReaderAt. It opens no
// files and knows no network and no vSphere.
package vmdk
