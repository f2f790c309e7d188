package lab

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	filePrefix = "/nfc/"
	// chunk is how much is read and written at a time. It costs little per call
	// and stays in the processor's cache.
	chunk = 256 << 10
	// With a capped rate, chunks last about chunkTime, so that the rate is even.
	chunkTime = 20 * time.Millisecond
	minChunk  = 512
)

var chunks = sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}

// serveFile answers for the ESXi host.
func (l *Lab) serveFile(w http.ResponseWriter, r *http.Request) {
	record := &RequestRecord{Range: r.Header.Get("Range")}
	l.mu.Lock()
	l.requests = append(l.requests, record)
	ticket, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, filePrefix), "/")
	lease := l.tickets[ticket]
	var it *item
	if lease != nil && lease.record.State == LeaseReady {
		record.VM, record.Lease = lease.vm.path, lease.record.ID
		for _, candidate := range lease.items {
			if candidate.name == name {
				it = candidate
				record.Disk, record.Key = it.number, it.key
			}
		}
	}
	l.mu.Unlock()
	answer := func(status int, text string) {
		l.mu.Lock()
		record.Status = status
		l.mu.Unlock()
		http.Error(w, text, status)
	}
	switch {
	case it == nil:
		answer(http.StatusNotFound, "no such file")
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		answer(http.StatusMethodNotAllowed, "use GET")
		return
	}
	s := &sending{lab: l, lease: lease, item: it, record: record, w: w, rc: http.NewResponseController(w)}
	f := l.faultsOf(lease.vm)
	if r.Method == http.MethodGet && f.hits(it.number) {
		switch {
		case f.takeOf("unavailable", it.number, f.Unavailable):
			if f.RetryAfter != "" {
				w.Header().Set("Retry-After", f.RetryAfter)
			}
			answer(http.StatusServiceUnavailable, "busy")
			return
		case f.takeOf("not found", it.number, f.NotFound):
			answer(http.StatusNotFound, "no such file")
			return
		case f.takeOf("forbidden", it.number, f.Forbidden):
			answer(http.StatusForbidden, "forbidden")
			return
		}
	}
	if !s.header(f, r) || r.Method == http.MethodHead {
		return
	}
	if f.EmptyDisk > 0 && f.EmptyDisk == it.number && lease.first && lease.faults == f {
		return
	}
	s.body(r.Context())
}

// sending is one answer.
type sending struct {
	lab    *Lab
	lease  *lease
	item   *item
	record *RequestRecord
	w      http.ResponseWriter
	rc     *http.ResponseController

	at, end int64 // of the stream: what is next, and where the body ends
}

// header writes status and headers. It reports false when there is no body to
// follow.
func (s *sending) header(f *faultState, r *http.Request) bool {
	size := s.item.stream.size
	s.at, s.end = 0, size
	status := http.StatusOK
	h := s.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	if s.item.disk != nil {
		h.Set("Content-Type", "application/x-vnd.vmware-streamVmdk")
	}
	if f.Ranged && f.hits(s.item.number) {
		if from, to, ok := parseRange(r.Header.Get("Range"), size); ok {
			if from >= size {
				h.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
				s.status(http.StatusRequestedRangeNotSatisfiable)
				return false
			}
			status, s.at, s.end = http.StatusPartialContent, from, to
			shown := from
			if f.WrongContentRange {
				shown = 0
			}
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", shown, to-1, size))
			if f.WrongRangeBody {
				s.at, s.end = 0, to-from
			}
		}
	}
	if s.item.disk == nil {
		h.Set("Content-Length", strconv.FormatInt(s.end-s.at, 10))
	} else {
		// A disk is made while it is sent, so its length is not known.
		h.Set("Transfer-Encoding", "chunked")
	}
	s.status(status)
	return true
}

func (s *sending) status(status int) {
	s.lab.mu.Lock()
	s.record.Status = status
	s.lab.mu.Unlock()
	s.w.WriteHeader(status)
}

// parseRange reads "bytes=N-" and "bytes=N-M". Anything else counts as no
// range.
func parseRange(header string, size int64) (from, to int64, ok bool) {
	spec, found := strings.CutPrefix(header, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	if !found || !dash {
		return 0, 0, false
	}
	from, err := strconv.ParseInt(first, 10, 64)
	if err != nil || from < 0 {
		return 0, 0, false
	}
	if last == "" {
		return from, size, true
	}
	to, err = strconv.ParseInt(last, 10, 64)
	if err != nil || to < from {
		return 0, 0, false
	}
	return from, min(to+1, size), true
}

// body sends the bytes, with what the faults of the moment want. It returns
// when the body is over, as far as the client can tell; otherwise it panics
// with http.ErrAbortHandler, which closes the connection.
func (s *sending) body(ctx context.Context) {
	buf, ok := chunks.Get().(*[]byte)
	if !ok {
		panic(http.ErrAbortHandler)
	}
	defer chunks.Put(buf)
	begin := s.at
	next := time.Now() // when the next chunk may go, with a capped rate
	for s.at < s.end {
		f := s.lab.faultsOf(s.lease.vm)
		n, stop := s.limit(f, s.at-begin)
		switch stop {
		case cut:
			s.abort()
		case short:
			return
		case stall:
			s.stall(ctx, f)
			continue
		}
		rate := s.lab.opts.BytesPerSecond
		if f.BytesPerSecond > 0 && f.hits(s.item.number) {
			rate = f.BytesPerSecond
		}
		if rate > 0 {
			n = min(n, max(minChunk, rate*int64(chunkTime)/int64(time.Second)))
			next = s.pace(ctx, next, n, rate)
		}
		p := (*buf)[:n]
		if read, err := s.item.stream.ReadAt(p, s.at); err != nil && (err != io.EOF || read < len(p)) {
			s.abort()
		}
		if place := f.FlipByteAt - s.at; f.FlipByteAt > 0 && place >= 0 && place < n && f.hits(s.item.number) &&
			f.take("flip", s.item.number, f.FlipTimes) {
			p[place] ^= 1
		}
		select {
		case <-s.lease.done:
			s.abort()
		default:
		}
		if s.at+n == s.item.stream.size {
			// Before the last byte is out: a client that has it may ask for
			// the manifest at once.
			s.lab.mu.Lock()
			s.item.sent = true
			s.lab.mu.Unlock()
		}
		written, err := s.w.Write(p)
		s.at += int64(written)
		s.lab.mu.Lock()
		s.record.Bytes += int64(written)
		s.lab.mu.Unlock()
		if err != nil {
			panic(http.ErrAbortHandler) // the client has gone
		}
	}
}

// stops are what ends a body before its time.
type stops int

const (
	none stops = iota
	cut
	short
	stall
)

// limit says how much may be sent now, or what happens instead, when sent
// bytes of the body are out.
func (s *sending) limit(f *faultState, sent int64) (int64, stops) {
	n := min(chunk, s.end-s.at)
	if !f.hits(s.item.number) {
		return n, none
	}
	for _, e := range []struct {
		what         string
		after, times int64
		stop         stops
	}{
		{"cut", f.CutAfter, int64(f.CutTimes), cut},
		{"short", f.ShortClean, int64(f.ShortCleanTimes), short},
		{"stall", f.StallAfter, int64(f.StallTimes), stall},
	} {
		if e.after <= 0 || sent > e.after || !f.left(e.what, s.item.number, int(e.times)) {
			continue
		}
		if sent == e.after {
			if f.take(e.what, s.item.number, int(e.times)) {
				return 0, e.stop
			}
			continue
		}
		n = min(n, e.after-sent)
	}
	return n, none
}

// pace waits until n bytes may go, and says when the next may.
func (s *sending) pace(ctx context.Context, next time.Time, n, rate int64) time.Time {
	now := time.Now()
	if next.Before(now) {
		next = now
	}
	if wait := next.Sub(now); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			s.abort()
		case <-s.lease.done:
			s.abort()
		case <-s.lab.ctx.Done():
			s.abort()
		}
	}
	return next.Add(time.Duration(n * int64(time.Second) / rate))
}

// stall waits until the client, the lease or the lab ends, or other faults are
// set.
func (s *sending) stall(ctx context.Context, f *faultState) {
	if err := s.rc.Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
	select {
	case <-f.replaced:
		return
	case <-ctx.Done():
	case <-s.lease.done:
	case <-s.lab.ctx.Done():
	}
	s.abort()
}

// abort closes the connection after what has been written is out.
func (s *sending) abort() {
	// The connection may be gone already, which is what is wanted.
	_ = s.rc.Flush()
	panic(http.ErrAbortHandler)
}
