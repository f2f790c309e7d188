// Package qcow2 writes QEMU's disk image format, version 3, with clusters of
// 64 KiB, from extents in rising order (QEMU's docs/interop/qcow2.txt).
//
// # Without transcoding
//
// A compressed cluster is a deflate stream (RFC 1951). A grain of a
// stream-optimized VMDK is one too, in a zlib wrapper of two bytes before and
// four behind it, and has the size of a cluster. So a grain becomes a
// compressed cluster by leaving the wrapper away. A stream that is not shorter
// than a cluster, one of another length than a cluster, and a short last grain
// become normal clusters.
//
// # The window
//
// qemu tells zlib to expect a window of 4 KiB (inflateInit2 with -12 in
// qcow2_zlib_decompress), while grains are compressed with one of 32 KiB and
// refer back farther than 4 KiB. This is right for two reasons. The format's
// specification asks for a deflate stream and names no smaller window. And
// qemu inflates a cluster in one call into a buffer that holds all of it: zlib
// then resolves references in that buffer, and uses its window only for what
// is no longer there. TestWindow proves it with the qemu-img at hand, on
// clusters half of whose bytes come from 32510 bytes back. A reader that
// inflates a cluster in small pieces through a window of 4 KiB would break the
// specification, and could not read such an image.
//
// # Order of writing
//
// Data, then each table when the disk has passed its range, then the table of
// tables and the reference counts, and the header last: until then the file
// begins with zeros, and no reader takes it for an image. Memory is one table
// of 64 KiB, one or two blocks of reference counts of that size, 8 bytes for
// each 512 MiB of disk, and the pool's batches.
package qcow2
