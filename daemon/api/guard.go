package api

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// guard refuses requests that a web page from elsewhere makes a browser send.
// Such a page reaches the loopback in two ways: under its own name, after that
// has been pointed at 127.0.0.1 (DNS rebinding; the Host header tells), or
// directly, from its own origin (the Origin header tells).
func guard(known func(host string) bool, a *api, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		forbid := func(what, value, advice string) {
			err := &failure{status: http.StatusForbidden, code: "forbidden",
				message: fmt.Sprintf("the %s %.100q is not this daemon's", what, value), details: advice}
			a.refused(r, a.actions[r.URL.Path], err)
			a.fail(w, r, err)
		}
		host := hostname(r.Host)
		if !loopback(host) && !known(host) {
			forbid("host", r.Host, "address it as localhost, or name it under hosts in the daemon's configuration")
			return
		}
		// Browsers send one Origin; several, or one that is "null", are foreign.
		origins := r.Header.Values("Origin")
		for _, o := range origins {
			u, err := url.Parse(o)
			// Without TLS a proxy before the daemon may have it.
			if err != nil || len(origins) > 1 || u.Scheme != "https" && (u.Scheme != "http" || r.TLS != nil) || !strings.EqualFold(u.Host, r.Host) {
				forbid("origin", o, "pages of other origins may not use the daemon: send no Origin, or have a proxy serve them under its address")
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// hostname gives the host of a Host header without port and brackets, in
// lower case.
func hostname(hostport string) string {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}
