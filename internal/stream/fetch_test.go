package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// script is a Source whose attempts are written down.
type script struct {
	content  []byte
	attempts []step
	opened   []int64 // offsets asked for
}

// step says how one attempt goes.
type step struct {
	openErr error
	ranged  bool // honour the offset
	from    []byte
	cut     int64 // break the connection at this offset of the stream; 0 never
	end     int64 // end cleanly at this offset; 0 never
	stall   int64 // send nothing more from this offset on; 0 never
	size    int64 // announced; 0 is unknown
}

func (s *script) next(context.Context, error) (Source, error) { return s, nil }

func (s *script) Open(ctx context.Context, offset int64) (*Body, error) {
	i := min(len(s.opened), len(s.attempts)-1)
	s.opened = append(s.opened, offset)
	st := s.attempts[i]
	if st.openErr != nil {
		return nil, st.openErr
	}
	content := s.content
	if st.from != nil {
		content = st.from
	}
	b := &Body{Size: -1}
	if st.size != 0 {
		b.Size = st.size
	}
	if st.ranged {
		b.Offset = offset
	}
	b.ReadCloser = &scriptBody{ctx: ctx, step: st, content: content, at: b.Offset}
	return b, nil
}

type scriptBody struct {
	ctx     context.Context
	step    step
	content []byte
	at      int64
}

func (b *scriptBody) Read(p []byte) (int, error) {
	end := int64(len(b.content))
	err := io.EOF
	switch {
	case b.step.cut > 0:
		end, err = min(end, b.step.cut), io.ErrUnexpectedEOF
	case b.step.end > 0:
		end = min(end, b.step.end)
	case b.step.stall > 0:
		end = min(end, b.step.stall)
	}
	if b.at >= end {
		if b.step.stall > 0 {
			<-b.ctx.Done()
			return 0, b.ctx.Err()
		}
		return 0, err
	}
	n := copy(p, b.content[b.at:end])
	b.at += int64(n)
	return n, nil
}

func (b *scriptBody) Close() error { return nil }

// memory is a Target that knows how long a whole stream is.
type memory struct {
	data   []byte
	want   int64
	resets int
	check  func([]byte) error
	fail   error
}

func (m *memory) Write(p []byte) (int, error) {
	if m.fail != nil {
		return 0, m.fail
	}
	m.data = append(m.data, p...)
	if m.check != nil {
		return len(p), m.check(m.data)
	}
	return len(p), nil
}
func (m *memory) Offset() int64 { return int64(len(m.data)) }
func (m *memory) Tail(p []byte) error {
	copy(p, m.data[len(m.data)-len(p):])
	return nil
}
func (m *memory) Reset() error { m.data = nil; m.resets++; return nil }
func (m *memory) Finish(int64) error {
	if int64(len(m.data)) < m.want {
		return ErrShort
	}
	return nil
}

func content(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestFetch(t *testing.T) {
	whole := content(5<<20+123, 1)
	other := content(5<<20+123, 2)
	const mib = 1 << 20
	unavailable := &StatusError{Status: 503, RetryAfter: 7 * time.Second}
	for name, tc := range map[string]struct {
		steps  []step
		held   int64 // from an earlier run
		check  func([]byte) error
		wfail  error
		opened []int64
		resets int
		err    error  // matched with errors.Is
		errAs  string // or part of the text
		waited time.Duration
	}{
		"at once":                 {steps: []step{{}}, opened: []int64{0}},
		"cut, ranges honoured":    {steps: []step{{cut: 3 * mib}, {ranged: true}}, opened: []int64{0, 3*mib - Overlap}},
		"cut, ranges ignored":     {steps: []step{{cut: 3 * mib}, {}}, opened: []int64{0, 3*mib - Overlap}, resets: 1},
		"cut before the overlap":  {steps: []step{{cut: 1000}, {ranged: true}}, opened: []int64{0, 0}},
		"continued, other bytes":  {steps: []step{{cut: 3 * mib}, {ranged: true, from: other}, {}}, opened: []int64{0, 3*mib - Overlap, 0}, resets: 1},
		"restart, other bytes":    {steps: []step{{cut: 1000}, {from: other}, {}}, opened: []int64{0, 0, 0}, resets: 1},
		"range refused":           {steps: []step{{cut: 3 * mib}, {openErr: fmt.Errorf("x: %w", ErrRange)}, {}}, opened: []int64{0, 3*mib - Overlap, 0}, resets: 1},
		"ends early but cleanly":  {steps: []step{{end: 3 * mib}, {ranged: true}}, opened: []int64{0, 3*mib - Overlap}},
		"empty":                   {steps: []step{{from: []byte{}}, {}}, opened: []int64{0, 0}},
		"always empty":            {steps: []step{{from: []byte{}}}, opened: []int64{0, 0, 0}, err: ErrEmpty},
		"503 with Retry-After":    {steps: []step{{openErr: unavailable}, {}}, opened: []int64{0, 0}, waited: 7 * time.Second},
		"503 for ever":            {steps: []step{{openErr: unavailable}}, opened: []int64{0, 0, 0}, errAs: "3 attempts without progress", waited: 14 * time.Second},
		"404 at once":             {steps: []step{{openErr: &StatusError{Status: 404}}}, opened: []int64{0}, errAs: "404"},
		"stall":                   {steps: []step{{stall: 3 * mib}, {ranged: true}}, opened: []int64{0, 3*mib - Overlap}, waited: time.Minute},
		"stalls for ever":         {steps: []step{{stall: 3 * mib}}, opened: []int64{0, 3*mib - Overlap, 3*mib - Overlap, 3*mib - Overlap}, resets: 3, err: ErrStalled},
		"cut thrice at one place": {steps: []step{{cut: 3 * mib}, {cut: 3 * mib}, {cut: 3 * mib}, {}}, opened: []int64{0, 3*mib - Overlap, 3*mib - Overlap, 3*mib - Overlap}, resets: 3},
		"cut for ever": {steps: []step{{cut: 3 * mib}}, opened: []int64{0, 3*mib - Overlap, 3*mib - Overlap, 3*mib - Overlap}, resets: 3,
			err: io.ErrUnexpectedEOF},
		"progress resets the count": {steps: []step{
			{cut: 1 * mib}, {cut: 1 * mib}, {cut: 1 * mib}, {cut: 2 * mib}, {cut: 2 * mib}, {cut: 2 * mib}, {},
		}, opened: []int64{0, mib - Overlap, mib - Overlap, mib - Overlap, 2*mib - Overlap, 2*mib - Overlap, 2*mib - Overlap}, resets: 6},
		"held from before":            {held: 2 * mib, steps: []step{{ranged: true}}, opened: []int64{2*mib - Overlap}},
		"held from before, no ranges": {held: 2 * mib, steps: []step{{}}, opened: []int64{2*mib - Overlap}, resets: 1},
		"this side fails":             {steps: []step{{}}, wfail: errors.New("disk full"), opened: []int64{0}, errAs: "disk full"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src := &script{content: whole, attempts: tc.steps}
				m := &memory{want: int64(len(whole)), check: tc.check, fail: tc.wfail}
				m.data = bytes.Clone(whole[:tc.held])
				start := time.Now()
				err := Fetch(t.Context(), src.next, m, Options{})
				switch {
				case tc.err != nil && !errors.Is(err, tc.err),
					tc.errAs != "" && (err == nil || !bytes.Contains([]byte(err.Error()), []byte(tc.errAs))),
					tc.err == nil && tc.errAs == "" && err != nil:
					t.Fatalf("error %v", err)
				}
				if err == nil && !bytes.Equal(m.data, whole) {
					t.Error("the bytes are wrong")
				}
				if fmt.Sprint(src.opened) != fmt.Sprint(tc.opened) || m.resets != tc.resets {
					t.Errorf("opened at %v with %d resets", src.opened, m.resets)
				}
				if got := time.Since(start); got < tc.waited {
					t.Errorf("waited %v, want at least %v", got, tc.waited)
				}
			})
		})
	}
}

func TestFetchTakesDamagedStreamAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, bad := content(3<<20, 1), content(3<<20, 2)
		src := &script{content: good, attempts: []step{{from: bad}, {}}}
		m := &memory{want: int64(len(good)), check: func(b []byte) error {
			if b[0] != good[0] {
				return &DamageError{errors.New("wrong first byte")}
			}
			return nil
		}}
		var retries []Retry
		if err := Fetch(t.Context(), src.next, m, Options{OnRetry: func(r Retry) { retries = append(retries, r) }}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m.data, good) || len(retries) != 1 || retries[0].Attempt != 2 || retries[0].Offset != 0 {
			t.Fatalf("retries %+v", retries)
		}
	})
}

func TestFetchEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		src := &script{content: content(100, 1), attempts: []step{{stall: 50}}}
		go func() {
			time.Sleep(time.Second) // the bubble's clock
			cancel(why)
		}()
		start := time.Now()
		err := Fetch(ctx, src.next, &memory{want: 100}, Options{})
		if !errors.Is(err, why) || time.Since(start) > time.Second {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
	})
}

// TestPace: what is taken is accounted for, and a wait longer than the stall
// timeout is no stall.
func TestPace(t *testing.T) {
	const mib = 1 << 20
	whole := content(3*mib+5, 1)
	for name, tc := range map[string]struct {
		steps []step
		paced int // bytes
	}{
		"at once":   {[]step{{}}, len(whole)},
		"continued": {[]step{{cut: 2 * mib}, {ranged: true}}, len(whole) + Overlap},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				paced := 0
				var retries []Retry
				src, m := &script{content: whole, attempts: tc.steps}, &memory{want: int64(len(whole))}
				err := Fetch(t.Context(), src.next, m, Options{
					Pace: func(ctx context.Context, n int) error {
						paced += n
						return sleep(ctx, time.Hour)
					},
					OnRetry: func(r Retry) { retries = append(retries, r) },
				})
				if err != nil || !bytes.Equal(m.data, whole) || paced != tc.paced || len(retries) != len(tc.steps)-1 {
					t.Errorf("paced %d bytes, want %d; retries %+v; error %v", paced, tc.paced, retries, err)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("enough"))
		defer cancel()
		src, m := &script{content: whole, attempts: []step{{}}}, &memory{want: int64(len(whole))}
		err := Fetch(ctx, src.next, m, Options{Pace: func(ctx context.Context, _ int) error { return sleep(ctx, time.Hour) }})
		if err == nil || err.Error() != "enough" || m.Offset() != bufferSize {
			t.Errorf("%d bytes are held, error %v", m.Offset(), err)
		}
		why := errors.New("no more")
		src = &script{content: whole, attempts: []step{{}}}
		err = Fetch(t.Context(), src.next, &memory{want: int64(len(whole))}, Options{Pace: func(context.Context, int) error { return why }})
		if !errors.Is(err, why) || len(src.opened) != 1 {
			t.Errorf("opened at %v, error %v", src.opened, err)
		}
	})
}

func TestWaitGrowsAndIsBounded(t *testing.T) {
	o := Options{}.withDefaults()
	for fruitless, seconds := range []int{1, 2, 4, 8, 16, 30, 30, 30} {
		top := time.Duration(seconds) * time.Second
		for range 100 {
			d := o.wait(fruitless, io.EOF)
			if d < top/2 || d > top {
				t.Fatalf("wait %d is %v", fruitless, d)
			}
		}
	}
}
