package lab

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
)

// stream is a file as the host sends it.
type stream struct {
	io.ReaderAt
	size         int64
	populated    int64 // bytes of guest data, for a disk
	sha1, sha256 string
	file         *os.File // nil when it is in memory
}

func (s *stream) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// memoryStream is a file that is no disk.
func memoryStream(data []byte) *stream {
	one, two := sha1.Sum(data), sha256.Sum256(data)
	return &stream{
		ReaderAt: bytes.NewReader(data), size: int64(len(data)),
		sha1: hex.EncodeToString(one[:]), sha256: hex.EncodeToString(two[:]),
	}
}

// streams holds the encoded disks of a lab in files. A disk is encoded when it
// is first asked for, and once. Its methods are safe for concurrent use.
type streams struct {
	dir string
	mu  sync.Mutex
	all map[streamKey]*pending
}

type streamKey struct {
	disk    *disk
	variant int // vmdk.EncodeOptions.Variant
}

type pending struct {
	done   chan struct{}
	stream *stream
	err    error
}

// get gives the stream of a disk, encoding it if need be. ctx bounds the wait;
// who began the encoding decides how long it may take.
func (s *streams) get(ctx context.Context, d *disk, variant int) (*stream, error) {
	key := streamKey{d, variant}
	s.mu.Lock()
	p, found := s.all[key]
	if !found {
		p = &pending{done: make(chan struct{})}
		s.all[key] = p
	}
	s.mu.Unlock()
	if !found {
		p.stream, p.err = encode(ctx, s.dir, d, variant)
		if p.err != nil {
			s.mu.Lock()
			delete(s.all, key)
			s.mu.Unlock()
		}
		close(p.done)
	}
	select {
	case <-p.done:
		return p.stream, p.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// forget drops a stream that no lease will ask for again.
func (s *streams) forget(d *disk, variant int) error {
	key := streamKey{d, variant}
	s.mu.Lock()
	p := s.all[key]
	delete(s.all, key)
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	<-p.done
	if p.stream == nil {
		return nil
	}
	return errors.Join(p.stream.close(), os.Remove(p.stream.file.Name()))
}

// close closes the files; nothing may be encoded any more. The owner of the
// folder removes them.
func (s *streams) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, p := range s.all {
		<-p.done
		if p.stream != nil {
			errs = append(errs, p.stream.close())
		}
	}
	return errors.Join(errs...)
}

// encode writes a disk's stream to a file.
func encode(ctx context.Context, dir string, d *disk, variant int) (*stream, error) {
	f, err := os.CreateTemp(dir, "disk-*.vmdk")
	if err != nil {
		return nil, fmt.Errorf("make stream file: %w", err)
	}
	w := &measure{ctx: ctx, file: f, one: sha1.New(), two: sha256.New()}
	c := &counter{content: d.content}
	err = vmdk.Encode(w, c, vmdk.EncodeOptions{Level: d.level(), CID: uint32(mix(d.content.seed)) | 1, Variant: variant})
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return &stream{
		ReaderAt: f, file: f, size: w.size, populated: c.populated,
		sha1: hex.EncodeToString(w.one.Sum(nil)), sha256: hex.EncodeToString(w.two.Sum(nil)),
	}, nil
}

// measure writes to a file, sums up, and stops when ctx ends.
type measure struct {
	ctx      context.Context //nolint:containedctx // one encoding long
	file     *os.File
	one, two hash.Hash
	size     int64
}

func (m *measure) Write(p []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := m.file.Write(p)
	m.one.Write(p[:n])
	m.two.Write(p[:n])
	m.size += int64(n)
	return n, err
}

// counter counts the grains that are not all zeros, which the encoder reads
// one by one.
type counter struct {
	*content
	populated int64
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.content.ReadAt(p, off)
	for _, b := range p[:n] {
		if b != 0 {
			c.populated += int64(n)
			break
		}
	}
	return n, err
}
