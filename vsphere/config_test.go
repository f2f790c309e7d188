package vsphere

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const secret = "s3cr3t"

func TestConfigFromEnv(t *testing.T) {
	for _, tt := range []struct {
		name                string
		env                 map[string]string
		url, user, password string
		insecure            bool
	}{
		{"bare host", map[string]string{"GOVC_URL": "vc.example"}, "https://vc.example/sdk", "", "", false},
		{"everything in the URL", map[string]string{"GOVC_URL": "https://root:" + secret + "@vc.example:8443/sdk"}, "https://vc.example:8443/sdk", "root", secret, false},
		{"no scheme", map[string]string{"GOVC_URL": "root:" + secret + "@vc.example"}, "https://vc.example/sdk", "root", secret, false},
		{"port, no scheme", map[string]string{"GOVC_URL": "localhost:8989/sdk/"}, "https://localhost:8989/sdk", "", "", false},
		{"at signs", map[string]string{"GOVC_URL": "administrator%40vsphere.local:p%40" + secret + "@vc.example"}, "https://vc.example/sdk", "administrator@vsphere.local", "p@" + secret, false},
		{"the environment wins", map[string]string{"GOVC_URL": "https://a:b@vc.example", "GOVC_USERNAME": "root", "GOVC_PASSWORD": secret}, "https://vc.example/sdk", "root", secret, false},
		{"user only", map[string]string{"GOVC_URL": "https://a:" + secret + "@vc.example", "GOVC_USERNAME": "root"}, "https://vc.example/sdk", "root", secret, false},
		{"insecure", map[string]string{"GOVC_URL": " http://[::1]:80 ", "GOVC_INSECURE": "true"}, "http://[::1]:80/sdk", "", "", true},
		{"insecure 1", map[string]string{"GOVC_URL": "vc", "GOVC_INSECURE": "1"}, "https://vc/sdk", "", "", true},
		{"not insecure", map[string]string{"GOVC_URL": "vc", "GOVC_INSECURE": "0"}, "https://vc/sdk", "", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := ConfigFromEnv(func(k string) string { return tt.env[k] })
			if err != nil {
				t.Fatal(err)
			}
			if cfg.URL.String() != tt.url || cfg.Username != tt.user || cfg.Password != tt.password || cfg.Insecure != tt.insecure {
				t.Errorf("got %s, user %q, password %q, insecure %v", cfg.URL, cfg.Username, cfg.Password, cfg.Insecure)
			}
		})
	}
	cfg, err := ConfigFromEnv(func(k string) string {
		return map[string]string{"GOVC_URL": "vc", "GOVC_DATACENTER": "dc", "GOVC_TLS_CA_CERTS": "/a.pem:/b.pem", "GOVC_TLS_KNOWN_HOSTS": "/k"}[k]
	})
	if err != nil || cfg.Datacenter != "dc" || len(cfg.CAFiles) != 2 || cfg.KnownHostsFile != "/k" {
		t.Errorf("got %+v, %v", cfg.CAFiles, err)
	}
}

func TestConfigErrors(t *testing.T) {
	for _, env := range []map[string]string{
		{},
		{"GOVC_URL": "  "},
		{"GOVC_URL": "ftp://root:" + secret + "@vc"},
		{"GOVC_URL": "https://root:" + secret + "@"},
		{"GOVC_URL": "https://root:" + secret + "/x@vc/sdk"},
		{"GOVC_URL": "https://root:12/" + secret + "@vc/sdk"},
		{"GOVC_URL": "https://root:12#" + secret + "@vc/sdk"},
		{"GOVC_URL": "https://root:12?" + secret + "@vc/sdk"},
		{"GOVC_URL": "https://root:%zz" + secret + "@vc/sdk"},
		{"GOVC_URL": "https://dom\\root:" + secret + "@vc/sdk"},
		{"GOVC_URL": "https://vc:port" + secret},
		{"GOVC_URL": "https://vc\x00" + secret},
		{"GOVC_URL": "vc", "GOVC_INSECURE": "perhaps"},
	} {
		_, err := ConfigFromEnv(func(k string) string { return env[k] })
		if err == nil {
			t.Errorf("%q: no error", env)
			continue
		}
		if problem.KindOf(err) != problem.Invalid {
			t.Errorf("%q: kind %d", env, problem.KindOf(err))
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestConfigHidesPassword(t *testing.T) {
	cfg, err := ConfigFromEnv(func(k string) string {
		return map[string]string{"GOVC_URL": "root:" + secret + "@vc.example"}[k]
	})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		fmt.Fprintf(&b, verb+"\n", cfg)
		fmt.Fprintf(&b, verb+"\n", &cfg)
		fmt.Fprintf(&b, verb+"\n", []Config{cfg})
		fmt.Fprintf(&b, verb+"\n", struct{ C Config }{cfg})
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
		slog.New(h).Info("config", slog.Any("value", cfg), slog.Any("pointer", &cfg))
	}
	for _, v := range []any{cfg, &cfg, map[string]Config{"x": cfg}} {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(data)
	}
	if strings.Contains(b.String(), secret) {
		t.Errorf("the password is shown:\n%s", b.String())
	}
	if !strings.Contains(b.String(), "root at https://vc.example/sdk") {
		t.Errorf("the server is not named:\n%s", b.String())
	}
}
