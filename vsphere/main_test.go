package vsphere

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/url"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve starts a simulated vCenter or ESXi host over TLS and gives a Config
// for it.
func serve(t testing.TB, m *simulator.Model) Config {
	t.Helper()
	t.Cleanup(m.Remove)
	if err := m.Create(); err != nil {
		t.Fatal(err)
	}
	m.Service.TLS = new(tls.Config)
	m.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword("root", "pass")}
	s := m.Service.NewServer()
	t.Cleanup(s.Close)
	return configFor(s.URL)
}

func configFor(u *url.URL) Config {
	own := *u
	own.User = nil
	password, _ := u.User.Password()
	return Config{URL: &own, Username: u.User.Username(), Password: password, Insecure: true}
}

func dial(t testing.TB, cfg Config) *Client {
	t.Helper()
	c, err := Connect(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

// within bounds a test's waits.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func newSOAP(t testing.TB, address string) *soap.Client {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return soap.NewClient(u, false)
}
