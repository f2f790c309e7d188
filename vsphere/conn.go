package vsphere

import (
	"bufio"
	"context"
	"net"
)

// readAhead is how much of a file connection is taken from the kernel at
// once. crypto/tls asks for one record (16 KiB) at a time, twice over; at the
// speed of a local network those calls cost more than the decryption.
const readAhead = 64 << 10

// readAheadConn reads a connection in large pieces. As any net.Conn it has one
// reader at a time.
type readAheadConn struct {
	net.Conn
	buf *bufio.Reader
}

// Read is part of net.Conn.
func (c *readAheadConn) Read(p []byte) (int, error) { return c.buf.Read(p) }

// dialReadAhead wraps what dial gives.
func dialReadAhead(dial func(ctx context.Context, network, addr string) (net.Conn, error)) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &readAheadConn{Conn: conn, buf: bufio.NewReaderSize(conn, readAhead)}, nil
	}
}
