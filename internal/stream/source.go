// Package stream brings one remote byte stream home: it opens a Source, takes
// its bytes in order, and when the connection breaks it continues where that
// can be proved right and starts again where it cannot. It knows HTTP and
// time, but neither disks' formats nor vSphere.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Body is an opened stream.
type Body struct {
	io.ReadCloser
	// Offset is where the body begins in the stream. It is the offset that
	// was asked for, or 0 when the server does not do ranges.
	Offset int64
	// Size is the size of the whole stream in bytes, -1 while unknown: the
	// size of a disk that is made on the fly is not known before its end.
	Size int64
}

// Source is a stream that can be opened again. Open begins at offset if the
// server can, at 0 otherwise: Body.Offset tells. There is no Stat: a
// host makes an exported disk on the fly, so asking anything of it starts a
// stream.
type Source interface {
	Open(ctx context.Context, offset int64) (*Body, error)
}

// HTTP is a Source that reads a URL with GET.
type HTTP struct {
	Client *http.Client
	URL    *url.URL
}

// StatusError is an answer other than 200 and 206.
type StatusError struct {
	Status int
	// RetryAfter is what the server asked for, 0 when it asked for nothing.
	RetryAfter time.Duration
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("the host answered %d %s", e.Status, http.StatusText(e.Status))
}

// Temporary reports whether the same request may succeed later.
func (e *StatusError) Temporary() bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests,
		http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// ErrRange means that a server's answer to a ranged request cannot be
// trusted; the stream has to be taken from its beginning.
var ErrRange = errors.New("the answer to a range request is not what was asked for")

// Open sends GET, with a Range header when offset is above 0. Answers: 200 is a
// body from byte 0; 206 counts only with a Content-Range that begins at
// offset (RFC 9110, 14.4), anything else in it is ErrRange; 416 is ErrRange;
// every other status is a *StatusError.
func (s HTTP) Open(ctx context.Context, offset int64) (*Body, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("build request: %w", redact(err))
	}
	// Without this net/http may ask for gzip and hand over other bytes than
	// the ones that the offsets count.
	req.Header.Set("Accept-Encoding", "identity")
	if offset > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	resp, err := s.Client.Do(req)
	if err != nil {
		return nil, redact(err)
	}
	body, err := accept(resp, offset)
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return body, nil
}

func accept(resp *http.Response, offset int64) (*Body, error) {
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return nil, fmt.Errorf("the host encoded the stream as %q, which was not asked for", enc)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return &Body{ReadCloser: resp.Body, Size: resp.ContentLength}, nil
	case http.StatusPartialContent:
		if offset == 0 {
			return nil, fmt.Errorf("%w: 206 without a Range", ErrRange)
		}
		first, last, size, err := parseContentRange(resp.Header.Values("Content-Range"))
		if err != nil {
			return nil, err
		}
		if first != offset {
			return nil, fmt.Errorf("%w: asked from byte %d, given from byte %d", ErrRange, offset, first)
		}
		if n := resp.ContentLength; n >= 0 && n != last-first+1 {
			return nil, fmt.Errorf("%w: Content-Range names %d bytes, Content-Length %d", ErrRange, last-first+1, n)
		}
		if size >= 0 && last != size-1 {
			return nil, fmt.Errorf("%w: it ends at byte %d of %d", ErrRange, last, size)
		}
		return &Body{ReadCloser: resp.Body, Offset: first, Size: size}, nil
	case http.StatusRequestedRangeNotSatisfiable:
		return nil, fmt.Errorf("%w: 416", ErrRange)
	default:
		return nil, &StatusError{Status: resp.StatusCode, RetryAfter: parseRetryAfter(resp.Header.Get("Retry-After"), time.Now())}
	}
}

// parseContentRange reads "bytes 5-9/10"; size is -1 for "*".
func parseContentRange(values []string) (first, last, size int64, err error) {
	fail := func(why string) (int64, int64, int64, error) {
		return 0, 0, 0, fmt.Errorf("%w: Content-Range %.80q: %s", ErrRange, values, why)
	}
	if len(values) != 1 {
		return fail("exactly one is needed")
	}
	unit, rest, ok := strings.Cut(strings.TrimSpace(values[0]), " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return fail("the unit is not bytes")
	}
	span, total, ok := strings.Cut(rest, "/")
	if !ok {
		return fail("no size")
	}
	from, to, ok := strings.Cut(span, "-")
	if !ok {
		return fail("no range")
	}
	if first, ok = parseCount(from); !ok {
		return fail("bad first byte")
	}
	if last, ok = parseCount(to); !ok || last < first {
		return fail("bad last byte")
	}
	size = -1
	if total != "*" {
		if size, ok = parseCount(total); !ok || size <= last {
			return fail("bad size")
		}
	}
	return first, last, size, nil
}

// parseCount reads digits only; strconv alone would let signs through.
func parseCount(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n < math.MaxInt64
}

// parseRetryAfter reads seconds or an HTTP date (RFC 9110, 10.2.3); what is
// neither, or lies in the past, is 0.
func parseRetryAfter(v string, now time.Time) time.Duration {
	v = strings.TrimSpace(v)
	if n, ok := parseCount(v); ok {
		return time.Duration(min(n, int64(maxRetryAfter/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil && at.After(now) {
		return min(at.Sub(now), maxRetryAfter)
	}
	return 0
}

// redact takes the URL out of net/http's errors: an NFC URL holds the ticket
// that opens the disk.
func redact(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}
