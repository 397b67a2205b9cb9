package console

import (
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// isWebSocket reports whether a request asks for a WebSocket.
func isWebSocket(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// tokenOf returns the token of a request, or "" if the request has none. It looks for ?token=TOKEN in the query, then for ?path=%3Ftoken%3DTOKEN (the
// form in URLs for noVNC), and then for the cookie "token", which older versions of noVNC send.
func tokenOf(r *http.Request) string {
	q := r.URL.Query()
	if token := q.Get("token"); token != "" {
		return token
	}
	if inner, err := url.Parse(q.Get("path")); err == nil {
		if token := inner.Query().Get("token"); token != "" {
			return token
		}
	}
	if c, err := r.Cookie("token"); err == nil {
		return c.Value
	}
	return ""
}

// checkOrigin returns Denied if the header Origin has a host that is not allowed, or another scheme than the URL of the console. A client that is not
// a browser sends no origin, and is allowed. The rules are Nova's, but X-Forwarded-Proto is not trusted, because clients can set it.
func (p *Proxy) checkOrigin(r *http.Request, t *Target) error {
	given := r.Header.Values("Origin")
	if len(given) == 0 {
		return nil
	}
	origin, err := url.Parse(given[0])
	if err != nil || len(given) > 1 || origin.Hostname() == "" {
		return errOrigin
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	allowed := append(slices.Clone(p.cfg.AllowedOrigins), strings.Trim(host, "[]"))
	if !slices.ContainsFunc(allowed, func(name string) bool { return strings.EqualFold(name, origin.Hostname()) }) {
		return errOrigin
	}
	base, err := url.Parse(t.URL)
	if err != nil || origin.Scheme != map[string]string{"ws": "http", "wss": "https", "http": "http", "https": "https"}[base.Scheme] {
		return errOrigin
	}
	return nil
}
