package image

import (
	"errors"
	"math"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	const capacity = 1 << 30
	one := []byte{1}
	for name, c := range map[string]struct {
		e     Extent
		after int64
		order bool   // ErrOrder is wanted
		what  string // else this; empty is no error
	}{
		"first":       {e: Extent{Start: 0, Length: 1, Data: one}},
		"adjacent":    {e: Extent{Start: 512, Length: 1, Data: one}, after: 512},
		"last":        {e: Extent{Start: capacity - 1, Length: 1, Data: one}},
		"grain":       {e: Extent{Start: 0, Length: MaxGrain, Data: make([]byte, MaxGrainData), Compressed: true}},
		"empty":       {e: Extent{Start: 0}, order: true},
		"negative":    {e: Extent{Start: -1, Length: 1, Data: one}, order: true},
		"overlap":     {e: Extent{Start: 511, Length: 1, Data: one}, after: 512, order: true},
		"at the end":  {e: Extent{Start: capacity, Length: 1, Data: one}, order: true},
		"far":         {e: Extent{Start: math.MaxInt64, Length: 1, Data: one}, order: true},
		"overflow":    {e: Extent{Start: 1, Length: math.MaxInt64, Data: one}, order: true},
		"data":        {e: Extent{Start: 0, Length: 2, Data: one}, what: "has 1 bytes of data, want 2"},
		"long grain":  {e: Extent{Start: 0, Length: MaxGrain + 1, Data: one, Compressed: true}, what: "more than 1048576"},
		"large grain": {e: Extent{Start: 0, Length: 512, Data: make([]byte, MaxGrainData+1), Compressed: true}, what: "compressed data has"},
	} {
		err := c.e.Check(c.after, capacity)
		if errors.Is(err, ErrOrder) != c.order || (err != nil) != (c.order || c.what != "") || err != nil && !strings.Contains(err.Error(), c.what) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}

func TestExtentError(t *testing.T) {
	t.Parallel()
	why := errors.New("why")
	for want, e := range map[string]Extent{
		"extent at sector 2 of the disk: why":                        {Start: 1024},
		"extent at sector 3 of the disk, byte 77 of the stream: why": {Start: 1536 + 5, StreamOffset: 77},
	} {
		if err := e.Bad(why); err.Error() != want || !errors.Is(err, why) {
			t.Errorf("got %q, want %q", err, want)
		}
	}
}
