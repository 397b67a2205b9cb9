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

// Base returns the scheme and host for the links of a reply, such as "https://api.example.org:8776", without a slash at the end.
// If [Config.PublicURL] is set, Base returns it.
//
// Otherwise Base uses the Host header, but only if the header names the local end of the connection: by the address of that end,
// as localhost, or by the server name of the TLS handshake. A client can write any other name into the header, so for another
// name Base uses the address of the local end. The first such request is logged as WARN, because PublicURL may be missing.
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
	if isReached(r, local) {
		return scheme + "://" + r.Host
	}
	if m != nil {
		m.foreign.Do(func() { //nolint:contextcheck // r has the context
			m.cfg.Logger.WarnContext(r.Context(), "unknown Host header, links have the service's address instead; set PublicURL",
				"host", shortenText(r.Host), "addr", local)
		})
	}
	if local == "" { // a Unix socket, or the recorder of a test
		return scheme + "://localhost"
	}
	return scheme + "://" + local
}

// isReached reports whether the Host header names the local end of the connection.
func isReached(r *http.Request, local string) bool {
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

// withBase adds the Mux to a context, for [Base].
func (m *Mux) withBase(ctx context.Context) context.Context {
	return context.WithValue(ctx, baseKey{}, m)
}

// mustPublicURL returns a URL without a slash at its end. It panics if s is neither empty nor a URL of the form
// https://host:port/path.
func mustPublicURL(s string) string {
	u, err := url.Parse(s)
	if s != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil) {
		panic("api: PublicURL is not of the form https://host:port/path: " + s)
	}
	return strings.TrimRight(s, "/")
}
