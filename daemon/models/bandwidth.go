package models

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Bandwidth is a rate in bytes per second; 0 is no limit.
type Bandwidth int64

// The range of a Bandwidth that is one. Less is more likely a number whose
// unit was forgotten; and the host gives up on a stream that takes too long.
const (
	MinBandwidth Bandwidth = 64 << 10
	MaxBandwidth Bandwidth = 1e12
)

const bandwidthForms = `want bytes per second, like "50MB/s", "50MiB/s", "50M" (the same as 50MB/s) or 50000000; 0 is no limit`

// bandwidthUnits are the units by what stands before the B, in lower case.
var bandwidthUnits = map[string]float64{
	"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30,
}

// ParseBandwidth reads a rate: a number, which may have a fraction, and a
// unit, both B/s and /s left out at will. K, M and G are powers of 1000, Ki, Mi
// and Gi of 1024. Whether the rate is in range Check says. The error does not
// repeat the text.
func ParseBandwidth(text string) (Bandwidth, error) {
	s := strings.TrimSpace(text)
	digits := len(s) - len(strings.TrimLeft(s, "0123456789."))
	n, err := strconv.ParseFloat(s[:digits], 64)
	if err != nil {
		return 0, errors.New("is no rate: " + bandwidthForms)
	}
	unit, _ := strings.CutSuffix(strings.TrimSpace(s[digits:]), "/s")
	if strings.HasSuffix(unit, "b") || strings.HasSuffix(unit, "bit") || strings.HasSuffix(unit, "bps") {
		return 0, errors.New("may be meant in bits: " + bandwidthForms)
	}
	factor, ok := bandwidthUnits[strings.ToLower(strings.TrimSuffix(unit, "B"))]
	if !ok {
		return 0, errors.New("has an unknown unit: " + bandwidthForms)
	}
	// Beyond the range anyway, and then too large for the type.
	return Bandwidth(min(n*factor, float64(MaxBandwidth)+1)), nil
}

// UnmarshalJSON takes a number of bytes per second, or a text as
// ParseBandwidth does. Whether it is in range Check says.
func (b *Bandwidth) UnmarshalJSON(data []byte) (err error) {
	if len(data) > 0 && data[0] == '"' {
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
		if *b, err = ParseBandwidth(text); err != nil {
			return fmt.Errorf("a bandwidth %w", err)
		}
		return nil
	}
	return json.Unmarshal(data, (*int64)(b))
}

// Check says what is wrong with a rate; empty means nothing.
func (b Bandwidth) Check() string {
	if b == 0 || b >= MinBandwidth && b <= MaxBandwidth {
		return ""
	}
	return fmt.Sprintf("is %d bytes per second, want 0 (no limit) or %d to %d", b, MinBandwidth, MaxBandwidth)
}
