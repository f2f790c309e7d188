package logging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestContractLine(t *testing.T) {
	var b bytes.Buffer
	h := New(&b, slog.LevelInfo, Text)
	r := slog.NewRecord(time.Date(2026, 1, 16, 23, 59, 35, 999, time.Local), slog.LevelInfo, "starting download", 0)
	r.AddAttrs(slog.Int("files", 4), slog.Int64("totalSize", 74088194540))
	if err := h.Handle(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "[2026-01-16 23:59:35] INFO: starting download | files=4, totalSize=74088194540\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

type lazy struct{}

func (lazy) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("x", 1), slog.String("token", "t0ken"))
}

func TestLines(t *testing.T) {
	for name, c := range map[string]struct {
		log  func(*slog.Logger)
		want string
	}{
		"levels": {func(l *slog.Logger) {
			l.Debug("d")
			l.Warn("w")
			l.Error("e")
			l.Log(context.Background(), slog.LevelInfo+2, "i")
		}, "DEBUG: d\nWARN: w\nERROR: e\nINFO: i"},
		"bare":     {func(l *slog.Logger) { l.Info("m") }, "INFO: m"},
		"newline":  {func(l *slog.Logger) { l.Info("m", slog.Any("k", "a\nb\x1b[31m")) }, `INFO: m | k="a\nb\x1b[31m"`},
		"message":  {func(l *slog.Logger) { l.Info("m\n[2026] INFO: x\x00") }, `INFO: m\n[2026] INFO: x\x00`},
		"key":      {func(l *slog.Logger) { l.Info("m", slog.Any("k\n", 1)) }, `INFO: m | k\n=1`},
		"unicode":  {func(l *slog.Logger) { l.Info("m", slog.Any("vm", "/dc/vm/Büro 東京")) }, "INFO: m | vm=/dc/vm/Büro 東京"},
		"bidi":     {func(l *slog.Logger) { l.Info("m", slog.Any("vm", "a\u202eb")) }, `INFO: m | vm="a\u202eb"`},
		"bytes":    {func(l *slog.Logger) { l.Info("m", slog.Any("k", "\xff")) }, `INFO: m | k="\xff"`},
		"separate": {func(l *slog.Logger) { l.Info("m", slog.Any("k", "a, b=c"), slog.Any("q", `"`), slog.Any("e", "")) }, `INFO: m | k="a, b=c", q="\"", e=""`},
		"groups": {func(l *slog.Logger) {
			l.With(slog.Any("a", 1)).WithGroup("g").With(slog.Any("b", 2)).Info("m", slog.Group("h", slog.Int("c", 3)), slog.Group("", slog.Int("d", 4)), slog.Group("empty"))
		}, "INFO: m | a=1, g.b=2, g.h.c=3, g.d=4"},
		"valuer": {func(l *slog.Logger) { l.Info("m", slog.Any("v", lazy{})) }, "INFO: m | v.x=1, v.token=[redacted]"},
		"types": {func(l *slog.Logger) {
			l.Info("m", slog.Any("err", errors.New("no: way")), slog.Any("d", 1500*time.Millisecond), slog.Any("nil", nil), slog.Any("b", true))
		}, "INFO: m | err=no: way, d=1.5s, nil=<nil>, b=true"},
		"secrets": {func(l *slog.Logger) {
			l.With(slog.Any("Password", "t0ken")).WithGroup("token").Info("m", slog.Any("api_token", "t0ken"), slog.Group("secret", slog.String("a", "t0ken")), slog.Any("Authorization", lazy{}))
		}, "INFO: m | Password=[redacted], token.api_token=[redacted], token.secret=[redacted], token.Authorization=[redacted]"},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			c.log(slog.New(New(&b, slog.LevelDebug, Text)))
			var got []string
			for line := range strings.Lines(b.String()) {
				got = append(got, strings.TrimSuffix(line[len("[2006-01-02 15:04:05] "):], "\n"))
			}
			if s := strings.Join(got, "\n"); s != c.want {
				t.Errorf("got  %s\nwant %s", s, c.want)
			}
		})
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	l := slog.New(New(&b, slog.LevelInfo, JSON))
	l.Debug("hidden")
	l.With(slog.Any("password", "t0ken")).WithGroup("g").Info("m\n", slog.Any("Token", "t0ken"), slog.Any("n", 1))
	var v map[string]any
	if err := json.Unmarshal(b.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "t0ken") || v["msg"] != "m\n" || v["password"] != Masked || strings.Count(b.String(), "\n") != 1 {
		t.Errorf("got %s", b.String())
	}
}

func TestOneWritePerRecord(t *testing.T) {
	var b bytes.Buffer
	l := slog.New(New(&b, slog.LevelInfo, Text))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				l.With(slog.Any("k", "v")).Info("message", slog.Any("n", 1))
			}
		})
	}
	wg.Wait()
	for line := range strings.Lines(b.String()) {
		if !strings.HasSuffix(line, "] INFO: message | k=v, n=1\n") {
			t.Fatalf("line %q", line)
		}
	}
}
