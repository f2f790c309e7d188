// Package ovf reads and writes what lies beside a VM's disks in an OVF
// package: the manifest of digests and the descriptor. It works on bytes; it
// opens no files and knows no vSphere.
package ovf
