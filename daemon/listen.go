package daemon

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// target is a resolved address to listen on.
type target struct {
	what    string // for errors
	port    string
	ips     []netip.Addr // none: all interfaces
	exposed bool         // one of them is no loopback address
}

func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return "" // resolve says so
	}
	return host
}

// resolve looks the host of addr up, once, so that what is judged is what is
// listened on.
func resolve(ctx context.Context, addr string) (target, error) {
	t := target{what: "listen on " + addr}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return t, problem.New(problem.Invalid, t.what, err, "give -addr as HOST:PORT")
	}
	t.port = port
	if host == "" {
		t.exposed = true
		return t, nil
	}
	if strings.EqualFold(host, "localhost") {
		// RFC 6761, section 6.3: it is the loopback, whatever a name server says.
		t.ips = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
		return t, nil
	}
	if t.ips, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
		return t, problem.New(problem.Invalid, t.what, err, "give -addr as HOST:PORT")
	}
	// IPv4 first: what clients try when they are told "localhost".
	slices.SortStableFunc(t.ips, func(a, b netip.Addr) int { return a.Unmap().BitLen() - b.Unmap().BitLen() })
	t.exposed = slices.ContainsFunc(t.ips, func(ip netip.Addr) bool { return !ip.Unmap().IsLoopback() })
	return t, nil
}

// listen opens the first of the addresses that can be.
func (t target) listen(ctx context.Context) (net.Listener, error) {
	type place struct{ network, host string }
	places := []place{{"tcp", ""}}
	if t.ips != nil {
		places = places[:0]
		for _, ip := range t.ips {
			if ip = ip.Unmap(); ip.Is4() {
				// With "tcp", 0.0.0.0 would be IPv6's interfaces as well.
				places = append(places, place{"tcp4", ip.String()})
			} else {
				places = append(places, place{"tcp", ip.String()})
			}
		}
	}
	var lc net.ListenConfig
	var first error
	for _, p := range places {
		l, err := lc.Listen(ctx, p.network, net.JoinHostPort(p.host, t.port))
		if err == nil {
			return l, nil
		}
		if first == nil {
			first = err
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			// Not the next address: clients would reach the other program.
			return nil, problem.New(problem.Conflict, t.what, err, "another program uses the port: stop it, or choose another with -addr")
		}
	}
	return nil, problem.New(problem.Failed, t.what, first, "")
}
