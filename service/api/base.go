package api

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// baseKey is the key of the [Mux] in a request's context, for [Base].
type baseKey struct{}

// Base returns the scheme and host that begin the links of a reply, such as
// "https://api.example.org:8776": [Config.PublicURL], or else the host of the request if it is
// the one that the connection has reached, by its address, as localhost, or by the name that the
// client has verified by TLS. Any other Host header is a client's word alone: then Base has the
// address that the connection has reached. It has no slash at its end.
func Base(r *http.Request) string {
	m, _ := r.Context().Value(baseKey{}).(*Mux)
	if m != nil && m.cfg.PublicURL != "" {
		return m.cfg.PublicURL
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	local := ""
	if addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && addr.Network() == "tcp" {
		local = addr.String()
	}
	if reached(r, local) {
		return scheme + "://" + r.Host
	}
	if m != nil {
		m.foreign.Do(func() { //nolint:contextcheck // r has the context
			m.cfg.Logger.WarnContext(r.Context(), "links name the address that the connection has reached: the Host header is not known to be this service; set PublicURL",
				"host", shorten(r.Host), "addr", local)
		})
	}
	if local == "" { // a Unix socket, or the recorder of a test
		return scheme + "://localhost"
	}
	return scheme + "://" + local
}

// reached reports whether the Host header names what the connection has reached.
func reached(r *http.Request, local string) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if r.TLS != nil && r.TLS.ServerName != "" && strings.EqualFold(host, r.TLS.ServerName) {
		return true
	}
	at, err := netip.ParseAddrPort(local)
	if err != nil {
		return strings.EqualFold(host, "localhost")
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap() == at.Addr().Unmap() || strings.EqualFold(host, "localhost") && at.Addr().IsLoopback()
}

// withBase makes a Mux known to [Base].
func (m *Mux) withBase(ctx context.Context) context.Context {
	return context.WithValue(ctx, baseKey{}, m)
}

// mustPublicURL returns a URL without a slash at its end. It panics if it is none of a service.
func mustPublicURL(s string) string {
	u, err := url.Parse(s)
	if s != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil) {
		panic("api: PublicURL is not of the form https://host:port/path: " + s)
	}
	return strings.TrimRight(s, "/")
}
