package models

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestParseBandwidth(t *testing.T) {
	for text, want := range map[string]Bandwidth{
		"0": 0, "65536": 65536, "50MB/s": 50e6, "50M": 50e6, "50m": 50e6, "50M/s": 50e6, " 50 MB/s ": 50e6,
		"1.5GB/s": 1.5e9, "100kB/s": 100e3, "100KB": 100e3, "64KiB/s": 64 << 10, "50MiB/s": 50 << 20, "1Gi": 1 << 30,
		"70000B/s": 70000, "70000B": 70000, "70000/s": 70000, "999999G": MaxBandwidth + 1,
		strings.Repeat("9", 300): MaxBandwidth + 1,
	} {
		if got, err := ParseBandwidth(text); got != want || err != nil {
			t.Errorf("%.20q: %d, %v", text, got, err)
		}
	}
	for text, why := range map[string]string{
		"": "no rate", "fast": "no rate", "-1": "no rate", "+5M": "no rate", "1e6": "unknown unit", "1.2.3M": "no rate", ".": "no rate",
		"NaN": "no rate", "Inf": "no rate", "0x10": "unknown unit", strings.Repeat("9", 400): "no rate",
		"50Mb/s": "bits", "50mb": "bits", "50Mbit/s": "bits", "50Mbps": "bits", "50T": "unknown unit", "50 M x": "unknown unit",
		"50MB/h": "unknown unit", "50BB": "unknown unit", "50 %": "unknown unit", "50M\x00": "unknown unit",
	} {
		if got, err := ParseBandwidth(text); err == nil || !strings.Contains(err.Error(), why) || len(text) > 9 && strings.Contains(err.Error(), text) {
			t.Errorf("%.20q: %d, %v", text, got, err)
		}
	}
}

func TestCheckBandwidth(t *testing.T) {
	for b, ok := range map[Bandwidth]bool{
		0: true, MinBandwidth: true, 50e6: true, MaxBandwidth: true, -1: false, 1: false, MinBandwidth - 1: false, MaxBandwidth + 1: false,
	} {
		d := Definition{VMPath: "x", OutputPath: "/x", Options: Options{Bandwidth: &b}}
		if bad := d.Check(); (bad == nil) != ok || !ok && bad[0].Field != "bandwidth" {
			t.Errorf("%d: %v", b, bad)
		}
	}
}

func TestBandwidthInJSON(t *testing.T) {
	for in, want := range map[string]Bandwidth{`"50MB/s"`: 50e6, "70000": 70000, "0": 0, `"0"`: 0} {
		var b Bandwidth
		if err := json.Unmarshal([]byte(in), &b); err != nil || b != want {
			t.Errorf("%s: %d, %v", in, b, err)
		}
	}
	for _, in := range []string{`"fast"`, "true", "1.5", "1e30", "{}"} {
		var b Bandwidth
		if err := json.Unmarshal([]byte(in), &b); err == nil {
			t.Errorf("%s: %d", in, b)
		}
	}
	if data, err := json.Marshal(Bandwidth(50e6)); string(data) != "50000000" || err != nil {
		t.Errorf("%s, %v", data, err)
	}
}

func TestCheckLimits(t *testing.T) {
	for field, r := range map[string]LimitsRequest{
		"":                 {MaxRunningJobs: new(1), StreamsPerHost: new(0), MaxStreams: new(1024), Bandwidth: new(Bandwidth(0))},
		"max_running_jobs": {MaxRunningJobs: new(0)},
		"streams_per_host": {StreamsPerHost: new(-1)},
		"max_streams":      {MaxStreams: new(1025)},
		"bandwidth":        {Bandwidth: new(Bandwidth(1))},
		"job_bandwidth":    {JobIDs: []string{"x"}},
		"job_ids":          {JobBandwidth: new(Bandwidth(0))},
		"request":          {},
	} {
		bad := r.Check()
		if field == "" && bad != nil || field != "" && (len(bad) != 1 || bad[0].Field != field) {
			t.Errorf("%+v: %v", r, bad)
		}
	}
}

func FuzzParseBandwidth(f *testing.F) {
	for _, s := range []string{"50MB/s", "1.5GiB", "0", "50Mb/s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if b, err := ParseBandwidth(s); err == nil && (b < 0 || b > MaxBandwidth+1) {
			t.Errorf("%q gives %d", s, b)
		}
	})
}
