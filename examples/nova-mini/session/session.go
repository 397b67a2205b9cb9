// Package session makes clients of other OpenStack services. It logs in at Keystone as nova-mini's own user, and finds the other service in the
// catalog.
package session

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"
	"golang.org/x/sync/singleflight"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/urlcheck"
)

// Config configures a [Session]. Type, AuthURL, Username and Password are required.
type Config struct {
	// Type is the type of the service in Keystone's catalog, such as network. Version is the version in the URLs of the service's API, such as v2.0.
	Type, Version string
	// AuthURL is Keystone's URL, such as https://host:5000/v3. Username and Password are nova-mini's login at Keystone.
	AuthURL, Username, Password string
	// UserDomain and ProjectDomain are the names of the domains of the user and of the project. Default: "Default". Project is the name of the user's project.
	// Default: "service".
	UserDomain, Project, ProjectDomain string
	// Region is the region of the service. Default: the first region in the catalog. Interfaces are the kinds of endpoints in the order of preference.
	// Default: internal, public. Endpoint is the URL of the service. Default: the URL in the catalog.
	Region     string
	Interfaces []string
	Endpoint   string
	// UserTokens reports whether clients of nova-mini send Keystone's tokens. Otherwise nova-mini sends every request as its own user.
	UserTokens bool
	// TLS is the configuration of connections. Default: the system's authorities.
	TLS *tls.Config
	// Timeout limits the time of a request. Default 30 s.
	Timeout time.Duration
}

// Session is a login at Keystone. It is safe for concurrent use.
type Session struct {
	cfg  Config
	http http.Client
	data http.Client // without a timeout and without a limit for replies

	logins singleflight.Group

	mu       sync.Mutex
	own      *gophercloud.ProviderClient // nil before the first login
	endpoint string                      // set with own; ends in "/"
}

// maxReply limits the size of a reply, in bytes.
const maxReply = 16 << 20

// New returns a session. It sends no request. The error joins a fault with the code Invalid for each required field that is empty and for each malformed value. The
// fault's Meta has the name of the option under "option".
func New(cfg Config) (*Session, error) {
	if err := errors.Join(cfg.problems()...); err != nil {
		return nil, err
	}
	cfg.UserDomain, cfg.ProjectDomain, cfg.Project = cmp.Or(cfg.UserDomain, "Default"), cmp.Or(cfg.ProjectDomain, "Default"), cmp.Or(cfg.Project, "service")
	cfg.Timeout = cmp.Or(cfg.Timeout, 30*time.Second)
	if len(cfg.Interfaces) == 0 {
		cfg.Interfaces = []string{"internal", "public"}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // net/http defines it as *http.Transport
	transport.TLSClientConfig = cfg.TLS
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // a redirect could send tokens to another server
	return &Session{
		cfg: cfg, http: http.Client{Transport: bounded{transport}, Timeout: cfg.Timeout, CheckRedirect: noRedirect},
		data: http.Client{Transport: transport, CheckRedirect: noRedirect},
	}, nil
}

// problems returns an error for each field that is missing or malformed.
func (cfg *Config) problems() (errs []error) {
	for _, one := range [][2]string{{"auth_url", cfg.AuthURL}, {"username", cfg.Username}, {"password", cfg.Password}} {
		if one[1] == "" {
			errs = append(errs, optionError(one[0], "is not set, and the "+cfg.Type+" service needs it"))
		}
	}
	for _, one := range [][2]string{{"auth_url", cfg.AuthURL}, {"endpoint_override", cfg.Endpoint}} {
		if err := checkURL(one[1]); one[1] != "" && err != nil {
			errs = append(errs, optionError(one[0], err.Error()))
		}
	}
	for _, is := range cfg.Interfaces {
		if !slices.Contains([]string{"public", "internal", "admin"}, is) {
			errs = append(errs, optionError("valid_interfaces", fmt.Sprintf("%q is neither public, internal nor admin", is)))
		}
	}
	return errs
}

// checkURL returns an error if a text is not the URL of a service.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.User != nil {
		return fmt.Errorf("%q is not a URL such as https://host:5000/v3", text)
	}
	return urlcheck.CheckText(text)
}

func optionError(option, text string) error {
	return fault.WithReason(fault.New(fault.Invalid, "%s", text), "", map[string]string{"option": option})
}

// bounded is a transport that reads at most maxReply bytes of a reply.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxReply), resp.Body}
	}
	return resp, err
}

// Transfers returns the HTTP client for large bodies. It has no timeout and no limit for the size of replies.
func (s *Session) Transfers() *http.Client { return &s.data }

// Client returns a client of the other service. The parameter token is the token of a user who has sent a request to nova-mini; the returned client uses this
// token. If the parameter is empty, or Config.UserTokens is not set, the returned client uses nova-mini's own user, and renews the token of this user by itself.
// Client blocks for the first login. Errors: those of [Session.Translate].
func (s *Session) Client(ctx context.Context, token string) (*gophercloud.ServiceClient, error) {
	p, at, err := s.login(ctx)
	if err != nil {
		return nil, s.Translate(ctx, nil, err)
	}
	if token != "" && s.cfg.UserTokens {
		p = &gophercloud.ProviderClient{HTTPClient: s.http}
		p.SetToken(token)
	}
	return &gophercloud.ServiceClient{ProviderClient: p, Endpoint: at, ResourceBase: at + s.cfg.Version + "/", Type: s.cfg.Type}, nil
}

// RenewToken renews the token of c if it expires within the given time. The client c must use nova-mini's own user. If the login fails, c keeps its token.
func (s *Session) RenewToken(ctx context.Context, c *gophercloud.ServiceClient, within time.Duration) {
	result, ok := c.GetAuthResult().(tokens.CreateResult)
	if !ok {
		return
	}
	if t, err := result.ExtractToken(); err == nil && !t.ExpiresAt.IsZero() && time.Until(t.ExpiresAt) < within {
		_ = c.Reauthenticate(ctx, c.Token()) // if the token expires, the request fails and reports that
	}
}

// login returns the client of nova-mini's own user, and the URL of the other service. It logs in if no login has succeeded before. Concurrent callers share
// one login, which goes on if the context of one of them ends.
func (s *Session) login(ctx context.Context) (*gophercloud.ProviderClient, string, error) {
	s.mu.Lock()
	own, at := s.own, s.endpoint
	s.mu.Unlock()
	if own != nil {
		return own, at, nil
	}
	_, err, _ := s.logins.Do("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
		defer cancel()
		return nil, s.logInOnce(ctx)
	})
	if err != nil {
		return nil, "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own, s.endpoint, nil
}

// logInOnce logs in, finds the service in the catalog, and stores the login and the URL of the service.
func (s *Session) logInOnce(ctx context.Context) error {
	p, err := openstack.NewClient(s.cfg.AuthURL)
	if err != nil {
		return err
	}
	p.HTTPClient = s.http
	err = openstack.Authenticate(ctx, p, gophercloud.AuthOptions{
		IdentityEndpoint: s.cfg.AuthURL, Username: s.cfg.Username, Password: s.cfg.Password, DomainName: s.cfg.UserDomain, AllowReauth: true,
		Scope: &gophercloud.AuthScope{ProjectName: s.cfg.Project, DomainName: s.cfg.ProjectDomain},
	})
	if err != nil {
		return &loginError{s.cfg.AuthURL, s.cfg.Username, describeError(err)}
	}
	at := s.cfg.Endpoint
	for _, kind := range s.cfg.Interfaces {
		if at == "" {
			at, err = p.EndpointLocator(gophercloud.EndpointOpts{Type: s.cfg.Type, Region: s.cfg.Region, Availability: gophercloud.Availability(kind)})
		}
	}
	if at == "" {
		return fmt.Errorf("the catalog has no %s service in the region %q for the interfaces %v: %w", s.cfg.Type, s.cfg.Region, s.cfg.Interfaces, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own, s.endpoint = p, strings.TrimSuffix(strings.TrimSuffix(at, "/"), "/"+s.cfg.Version)+"/"
	return nil
}

// Translate returns the error of a request of the client c with the code Unavailable. If ctx has ended, the code is that of ctx. If c uses the token of a user, and the service refuses this
// token, the code is Unauthenticated (401) or Denied (403). The client c may be nil. The text has the request and the status, not the reply, which may repeat a token. The text for users says whether the service or Keystone is away.
func (s *Session) Translate(ctx context.Context, c *gophercloud.ServiceClient, err error) error {
	var reply gophercloud.ErrUnexpectedResponseCode
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fault.New(fault.CodeOf(ctx.Err()), "ask the %s service: %w", s.cfg.Type, ctx.Err())
	case errors.As(err, &reply) && s.ofClient(c) && reply.Actual == http.StatusUnauthorized:
		return fault.New(fault.Unauthenticated, "The %s service does not accept the token of the request.", s.cfg.Type)
	case errors.As(err, &reply) && s.ofClient(c) && reply.Actual == http.StatusForbidden:
		return fault.New(fault.Denied, "The %s service does not allow the request.", s.cfg.Type)
	}
	text := fmt.Sprintf("The %s service is not available now.", s.cfg.Type)
	if again, ok := errors.AsType[*gophercloud.ErrUnableToReauthenticate](err); ok {
		err = &loginError{s.cfg.AuthURL, s.cfg.Username, describeError(again.ErrReauth)}
	}
	if _, ok := errors.AsType[*loginError](err); ok {
		text = fmt.Sprintf("The %s service cannot be used now, because the login at Keystone, the identity service, has failed.", s.cfg.Type)
	}
	return fault.WithUser(fault.New(fault.Unavailable, "ask the %s service: %w", s.cfg.Type, describeError(err)), text)
}

// loginError means that the service's own user cannot log in.
type loginError struct {
	url, user string
	err       error
}

func (e *loginError) Error() string {
	return fmt.Sprintf("log in at Keystone (%s) as the user %s: %v", e.url, e.user, e.err)
}
func (e *loginError) Unwrap() error { return e.err }

// describeError returns an error with the request and the status instead of the reply, which may repeat a token.
func describeError(err error) error {
	if reply, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err); ok {
		return fmt.Errorf("%s %s is answered with status %d", reply.Method, reply.URL, reply.Actual)
	}
	return err
}

// ofClient reports whether c uses the token of a user who has sent a request to nova-mini.
func (s *Session) ofClient(c *gophercloud.ServiceClient) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return c != nil && c.ProviderClient != s.own
}
