// Package lab is a vCenter with an ESXi host to run exports against: govmomi's
// simulator (vcsim), extended with what an export needs and vcsim does not
// have. That is ExportVm, ExportSnapshot and CreateDescriptor; leases that
// expire unless they are renewed, with manifests; and a second TLS listener
// with a certificate of its own, which serves stream-optimized VMDKs of real,
// reproducible content. On request it misbehaves in the ways hosts do: see
// Faults.
//
// It is for tests, the benchmark and the demonstration; no shipped binary
// links it. It knows nothing of the code that it tests, but for the VMDK
// encoder.
//
// Differences from a real host that a test should know: a stream is encoded
// once, before its lease becomes ready, so that serving it costs little; disks
// do not change while a VM runs, and a snapshot's content is its VM's; a VM
// that a client creates or clones has empty disks; a lease that ended stays
// readable, in its last state.
package lab
