package stream

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestParseContentRange(t *testing.T) {
	for _, tc := range []struct {
		in                []string
		first, last, size int64
		ok                bool
	}{
		{in: []string{"bytes 5-9/10"}, first: 5, last: 9, size: 10, ok: true},
		{in: []string{"Bytes 0-0/*"}, first: 0, last: 0, size: -1, ok: true},
		{in: nil},
		{in: []string{"bytes 5-9/10", "bytes 5-9/10"}},
		{in: []string{"bytes 9-5/10"}},
		{in: []string{"bytes 5-9/9"}},
		{in: []string{"bytes -5-9/10"}},
		{in: []string{"bytes +5-9/10"}},
		{in: []string{"bytes 5-/10"}},
		{in: []string{"bytes */10"}},
		{in: []string{"lines 5-9/10"}},
		{in: []string{"bytes 5-99999999999999999999/*"}},
		{in: []string{"bytes=5-9/10"}},
	} {
		first, last, size, err := parseContentRange(tc.in)
		if (err == nil) != tc.ok {
			t.Errorf("%q: error %v", tc.in, err)
			continue
		}
		if err != nil {
			if !errors.Is(err, ErrRange) {
				t.Errorf("%q: %v is not ErrRange", tc.in, err)
			}
			continue
		}
		if first != tc.first || last != tc.last || size != tc.size {
			t.Errorf("%q: %d-%d/%d", tc.in, first, last, size)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Add("bytes 0-0/*")
	f.Fuzz(func(t *testing.T, s string) {
		first, last, size, err := parseContentRange([]string{s})
		if err == nil && (first < 0 || last < first || size != -1 && size <= last) {
			t.Fatalf("%q: %d-%d/%d", s, first, last, size)
		}
	})
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"":                              0,
		"7":                             7 * time.Second,
		"-7":                            0,
		"soon":                          0,
		"99999999999":                   maxRetryAfter,
		"Fri, 02 Jan 2026 03:04:35 GMT": 30 * time.Second,
		"Fri, 02 Jan 2026 03:04:00 GMT": 0,
		"Fri, 02 Jan 2099 03:04:00 GMT": maxRetryAfter,
	} {
		if got := parseRetryAfter(in, now); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

func TestHTTPOpen(t *testing.T) {
	for name, tc := range map[string]struct {
		offset int64
		answer func(w http.ResponseWriter)
		want   error  // matched with errors.Is
		status int    // or a StatusError with this status
		at     int64  // else the body's offset
		body   string // and what it holds
	}{
		"whole": {answer: func(w http.ResponseWriter) { io.WriteString(w, "abc") }, body: "abc"},
		"range": {offset: 1, answer: func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 1-2/3")
			w.WriteHeader(http.StatusPartialContent)
			io.WriteString(w, "bc")
		}, at: 1, body: "bc"},
		"range ignored": {offset: 1, answer: func(w http.ResponseWriter) { io.WriteString(w, "abc") }, body: "abc"},
		"other range": {offset: 1, answer: func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 0-2/3")
			w.WriteHeader(http.StatusPartialContent)
		}, want: ErrRange},
		"no content-range": {offset: 1, answer: func(w http.ResponseWriter) { w.WriteHeader(http.StatusPartialContent) }, want: ErrRange},
		"length lies": {offset: 1, answer: func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 1-2/3")
			w.Header().Set("Content-Length", "1")
			w.WriteHeader(http.StatusPartialContent)
			io.WriteString(w, "b")
		}, want: ErrRange},
		"not to the end": {offset: 1, answer: func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 1-1/3")
			w.WriteHeader(http.StatusPartialContent)
			io.WriteString(w, "b")
		}, want: ErrRange},
		"416":          {offset: 1, answer: func(w http.ResponseWriter) { w.WriteHeader(http.StatusRequestedRangeNotSatisfiable) }, want: ErrRange},
		"404":          {answer: func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }, status: 404},
		"unasked 206":  {answer: func(w http.ResponseWriter) { w.WriteHeader(http.StatusPartialContent) }, want: ErrRange},
		"204 is wrong": {answer: func(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) }, status: 204},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if got, want := r.Header.Get("Range") != "", tc.offset > 0; got != want {
					t.Errorf("Range header %q", r.Header.Get("Range"))
				}
				tc.answer(w)
			}))
			defer srv.Close()
			u, err := url.Parse(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			body, err := HTTP{Client: srv.Client(), URL: u}.Open(t.Context(), tc.offset)
			if tc.want != nil || tc.status != 0 {
				status, _ := errors.AsType[*StatusError](err)
				if tc.want != nil && !errors.Is(err, tc.want) || tc.status != 0 && (status == nil || status.Status != tc.status) {
					t.Fatalf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			got, err := io.ReadAll(body)
			if err != nil || string(got) != tc.body || body.Offset != tc.at {
				t.Fatalf("%q at %d, %v", got, body.Offset, err)
			}
		})
	}
}

func TestErrorsHideTheTicket(t *testing.T) {
	u, _ := url.Parse("http://127.0.0.1:1/nfc/secret-ticket/disk-0.vmdk")
	_, err := HTTP{Client: http.DefaultClient, URL: u}.Open(t.Context(), 0)
	if err == nil || strings.Contains(err.Error(), "secret-ticket") {
		t.Fatalf("error %v", err)
	}
}
