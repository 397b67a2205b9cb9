package api

import (
	"context"
	"net/http"
	"net/url"

	"github.com/armature-go/armature/fault"
)

// pathKey is the key of the client's path in a request's context, for [RequestPath].
type pathKey struct{}

// RequestPath returns the path of a request as the client has sent it, before [Config].Rewrite.
func RequestPath(r *http.Request) string {
	if path, ok := r.Context().Value(pathKey{}).(string); ok {
		return path
	}
	return r.URL.Path
}

// rewrite returns the request with the path by which it is routed.
func (m *Mux) rewrite(rec *recorder, r *http.Request) *http.Request {
	if m.cfg.Rewrite == nil {
		return r
	}
	sent := r.URL.EscapedPath()
	routed, project := m.cfg.Rewrite(sent)
	path, err := url.PathUnescape(routed)
	if routed == sent || err != nil {
		return r
	}
	rec.project = project
	out := r.WithContext(context.WithValue(r.Context(), pathKey{}, r.URL.Path))
	at := *r.URL
	at.Path, at.RawPath = path, routed
	out.URL = &at
	return out
}

// checkProject returns an error if the path names a project other than the client's.
func (rec *recorder) checkProject() error {
	if rec.project == "" || rec.project == rec.req.ProjectID {
		return nil
	}
	return fault.New(fault.Invalid, "Malformed request URL: URL's project_id '%s' doesn't match Context's project_id '%s'", shortenText(rec.project), rec.req.ProjectID)
}
