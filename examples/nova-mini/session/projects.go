package session

import (
	"context"
	"net/http"
	"net/url"

	"github.com/gophercloud/gophercloud/v2"
)

// Projects asks Keystone for projects. It is safe for concurrent use.
type Projects struct{ session *Session }

// NewProjects returns a client of Keystone at cfg.AuthURL. It sends no request, and ignores cfg.Type, cfg.Version, cfg.Endpoint and cfg.UserTokens. Errors: those of [New].
func NewProjects(cfg Config) (*Projects, error) {
	cfg.Type, cfg.Version, cfg.Endpoint, cfg.UserTokens = "identity", "v3", cfg.AuthURL, true
	s, err := New(cfg)
	return &Projects{s}, err
}

// Exists reports whether a project exists, with the rights of the client that has the token. It blocks until Keystone answers. Errors: those of [Session.Translate], such as Denied if the client
// may not see the project.
func (p *Projects) Exists(ctx context.Context, token, id string) (bool, error) {
	if id == "." || id == ".." { // a client may send any text as the id: this one would lead to another path
		return false, nil
	}
	c, err := p.session.Client(ctx, token)
	if err != nil {
		return false, err
	}
	var reply any
	resp, err := c.Get(ctx, c.ServiceURL("projects", url.PathEscape(id)), &reply, nil) // Get reads the body and closes it
	if gophercloud.ResponseCodeIs(err, http.StatusNotFound) {
		return false, nil
	}
	if err != nil {
		return false, p.session.Translate(ctx, c, err)
	}
	_ = resp.Body.Close()
	return true, nil
}
