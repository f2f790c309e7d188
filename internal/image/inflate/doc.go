// Package inflate decompresses DEFLATE (RFC 1951) and zlib streams (RFC 1950)
// that are wholly in memory into buffers that are wholly in memory, which is
// what the grains of a disk are. Without a window to keep and a reader to ask,
// that takes about half the time compress/flate takes.
//
// It is ordinary bounds-checked Go: a damaged stream is an error and cannot
// reach outside the two buffers. It knows nothing of disks.
package inflate
