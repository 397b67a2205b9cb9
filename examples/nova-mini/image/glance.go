package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"
	"github.com/gophercloud/gophercloud/v2/pagination"
	"golang.org/x/sync/singleflight"

	"github.com/armature-go/armature/fault"
)

// GlanceConfig configures a [Glance]. AuthURL, Username and Password are required.
type GlanceConfig struct {
	// AuthURL is Keystone's URL, https://host:5000/v3. The user logs in there, and the catalog of the login has the image service. The user has the role
	// admin, because it reads the images of all projects.
	AuthURL, Username, Password string
	// UserDomain and ProjectDomain are names of domains. Default: Default. Project is the name of the user's project. Default: service.
	UserDomain, Project, ProjectDomain string
	// Region is the region of the image service. Default: the first one in the catalog. Interfaces are the kinds of endpoints, the best
	// first. Default: internal, public. Endpoint is the URL of the image service. Default: the one of the catalog.
	Region     string
	Interfaces []string
	Endpoint   string
	// UserTokens reports that the tokens of clients are Keystone's. Then Glance decides for each client what the client may do. Otherwise every request
	// is one of the user of this service.
	UserTokens bool
	// TLS is the configuration of connections to Keystone and Glance. Default: the system's authorities.
	TLS *tls.Config
	// Timeout is the time of a request, without the transfer of an image. Default 30 s.
	Timeout time.Duration
	// TTL is the time for which [Glance.Get] returns an image again without a request. Default 5 s; negative: not at all.
	TTL    time.Duration
	Logger *slog.Logger
}

// Glance are the images of OpenStack's image service. It is a [Keeper], and is safe for concurrent use. A method blocks until the service answers, at most Timeout.
type Glance struct {
	cfg      GlanceConfig
	requests http.Client // for all but the content of images
	data     http.Client // without a timeout

	logins singleflight.Group

	mu       sync.Mutex
	own      *gophercloud.ProviderClient // of the user of this service; nil before the first login
	endpoint string                      // set with own; ends in "/"
	cache    map[[32]byte]cached
}

type cached struct {
	image Image
	until time.Time
}

// maxReply bounds a reply of Keystone or Glance, without the content of an image, in bytes. maxCached bounds the number of images in the cache, and maxListed that
// of a list.
const (
	maxReply  = 16 << 20
	maxCached = 1000
	maxListed = 10_000
)

// NewGlance returns the images of an image service. It sends no request. Invalid: a required field is empty, or a URL is malformed.
func NewGlance(cfg GlanceConfig) (*Glance, error) {
	for _, one := range [][2]string{{"auth_url", cfg.AuthURL}, {"username", cfg.Username}, {"password", cfg.Password}} {
		if one[1] == "" {
			return nil, optionError(one[0], "is not set, and the image service needs it")
		}
	}
	for option, text := range map[string]string{"auth_url": cfg.AuthURL, "endpoint_override": cfg.Endpoint} {
		u, err := url.Parse(text)
		if text != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.User != nil) {
			return nil, optionError(option, fmt.Sprintf("%q is not a URL such as https://host:5000/v3", text))
		}
	}
	for _, is := range cfg.Interfaces {
		if !slices.Contains([]string{"public", "internal", "admin"}, is) {
			return nil, optionError("valid_interfaces", fmt.Sprintf("%q is neither public, internal nor admin", is))
		}
	}
	cfg.UserDomain, cfg.ProjectDomain, cfg.Project = cmp.Or(cfg.UserDomain, "Default"), cmp.Or(cfg.ProjectDomain, "Default"), cmp.Or(cfg.Project, "service")
	cfg.Timeout, cfg.TTL = cmp.Or(cfg.Timeout, 30*time.Second), cmp.Or(cfg.TTL, 5*time.Second)
	if len(cfg.Interfaces) == 0 {
		cfg.Interfaces = []string{"internal", "public"}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // net/http defines it as *http.Transport
	transport.TLSClientConfig = cfg.TLS
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // a redirect would send tokens to another server
	return &Glance{
		cfg: cfg, cache: map[[32]byte]cached{},
		requests: http.Client{Transport: bounded{transport}, Timeout: cfg.Timeout, CheckRedirect: noRedirect},
		data:     http.Client{Transport: transport, CheckRedirect: noRedirect},
	}, nil
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

// CloseIdle closes the connections that no request uses.
func (g *Glance) CloseIdle() {
	g.requests.CloseIdleConnections()
	g.data.CloseIdleConnections()
}

// login returns the client of the service's own user, and the URL of the image service. It logs in if no login has succeeded before; the client renews
// its token by itself. Callers share a login, which does not end with the context of one of them.
func (g *Glance) login(ctx context.Context) (*gophercloud.ProviderClient, string, error) {
	g.mu.Lock()
	own, at := g.own, g.endpoint
	g.mu.Unlock()
	if own != nil {
		return own, at, nil
	}
	_, err, _ := g.logins.Do("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.cfg.Timeout)
		defer cancel()
		return nil, g.logInOnce(ctx)
	})
	if err != nil {
		return nil, "", err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.own, g.endpoint, nil
}

// logInOnce logs in, and finds the image service.
func (g *Glance) logInOnce(ctx context.Context) error {
	p, err := openstack.NewClient(g.cfg.AuthURL)
	if err != nil {
		return err
	}
	p.HTTPClient = g.requests
	err = openstack.Authenticate(ctx, p, gophercloud.AuthOptions{
		IdentityEndpoint: g.cfg.AuthURL, Username: g.cfg.Username, Password: g.cfg.Password, DomainName: g.cfg.UserDomain, AllowReauth: true,
		Scope: &gophercloud.AuthScope{ProjectName: g.cfg.Project, DomainName: g.cfg.ProjectDomain},
	})
	if err != nil {
		return fmt.Errorf("log in at Keystone: %w", err)
	}
	at := g.cfg.Endpoint
	for _, kind := range g.cfg.Interfaces {
		if at == "" {
			at, err = p.EndpointLocator(gophercloud.EndpointOpts{Type: "image", Region: g.cfg.Region, Availability: gophercloud.Availability(kind)})
		}
	}
	if at == "" {
		return fmt.Errorf("the catalog has no image service in the region %q for the interfaces %v: %w", g.cfg.Region, g.cfg.Interfaces, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.own, g.endpoint = p, strings.TrimSuffix(strings.TrimSuffix(at, "/"), "/v2")+"/"
	return nil
}

// client returns a client for a token, or, if the token is empty, for the service's own user.
func (g *Glance) client(ctx context.Context, token string) (*gophercloud.ServiceClient, error) {
	p, at, err := g.login(ctx)
	if err != nil {
		return nil, g.translate(ctx, "", err)
	}
	if token != "" && g.cfg.UserTokens {
		p = &gophercloud.ProviderClient{HTTPClient: g.requests}
		p.SetToken(token)
	}
	return &gophercloud.ServiceClient{ProviderClient: p, Endpoint: at, ResourceBase: at + "v2/", Type: "image"}, nil
}

// translate gives an error of the image service its code. The texts are Nova's. The text of a reply is left out, because it may repeat a token.
func (g *Glance) translate(ctx context.Context, id string, err error) error {
	var reply gophercloud.ErrUnexpectedResponseCode
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fault.New(fault.CodeOf(ctx.Err()), "ask the image service: %w", ctx.Err())
	case !errors.As(err, &reply):
	case id != "" && reply.Actual == http.StatusNotFound:
		return fault.New(fault.NotFound, "Image %s could not be found.", id)
	case id != "" && (reply.Actual == http.StatusForbidden || reply.Actual == http.StatusUnauthorized):
		return fault.New(fault.Denied, "Not authorized for image %s.", id)
	case id != "" && reply.Actual == http.StatusConflict:
		return fault.New(fault.Conflict, "the image service refuses the change of image %s in its present state", id)
	case id != "" && (reply.Actual == http.StatusBadRequest || reply.Actual == http.StatusRequestEntityTooLarge):
		return fault.New(fault.Invalid, "Request of image %s got BadRequest response: status %d", id, reply.Actual)
	default:
		err = fmt.Errorf("%s %s is answered with status %d", reply.Method, reply.URL, reply.Actual)
	}
	g.cfg.Logger.ErrorContext(ctx, "image service failed", "image", id, "error", err)
	return fault.WithUser(fault.New(fault.Unavailable, "ask the image service: %w", err), "Connection to glance host failed: the image service is not available now.")
}

// imageOf converts an image.
func imageOf(is *images.Image) Image {
	out := Image{
		ID: is.ID, Name: is.Name, Size: is.SizeBytes, MinRAMMiB: is.MinRAMMegabytes, MinDiskGiB: is.MinDiskGigabytes, Status: string(is.Status),
		Created: is.CreatedAt, Updated: is.UpdatedAt, Format: is.DiskFormat, checksum: is.Checksum,
	}
	for key, v := range is.Properties {
		text, ok := v.(string)
		switch {
		case key == "os_hash_algo":
			out.hashAlgo = text
		case key == "os_hash_value":
			out.hash = text
		case !ok || slices.Contains(standardProperties, key) || strings.HasPrefix(key, "os_glance_"):
		default:
			if out.Properties == nil {
				out.Properties = map[string]string{}
			}
			out.Properties[key] = text
		}
	}
	return out
}

// standardProperties are attributes of each image that are not its own properties, although the client library counts them among these.
var standardProperties = []string{"self", "file", "schema", "owner", "os_hidden", "locations", "direct_url", "stores"}

// Get implements Source. The result may be as old as TTL.
func (g *Glance) Get(ctx context.Context, token, id string) (*Image, error) {
	key := sha256.Sum256([]byte(token + "\x00" + id))
	g.mu.Lock()
	c, ok := g.cache[key]
	g.mu.Unlock()
	if ok && time.Now().Before(c.until) {
		return &c.image, nil
	}
	is, err := g.get(ctx, token, id)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.cache) >= maxCached {
		clear(g.cache)
	}
	if g.cfg.TTL > 0 && is.Status == Active { // another status soon changes
		g.cache[key] = cached{*is, time.Now().Add(g.cfg.TTL)}
	}
	return is, nil
}

// get asks the service for an image.
func (g *Glance) get(ctx context.Context, token, id string) (*Image, error) {
	if !isID(id) { // it would be another path
		return nil, fault.New(fault.NotFound, "Image %s could not be found.", id)
	}
	c, err := g.client(ctx, token)
	if err != nil {
		return nil, err
	}
	found, err := images.Get(ctx, c, id).Extract()
	if err != nil {
		return nil, g.translate(ctx, id, err)
	}
	if found.ID != id || found.Status == "" {
		return nil, g.translate(ctx, id, errors.New("the reply is not an image"))
	}
	return new(imageOf(found)), nil
}

// isID reports whether a text may be the id of an image: letters, digits and hyphens.
func isID(text string) bool {
	return text != "" && len(text) <= 64 && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == ""
}

// List implements Source. It returns the first 10,000 images.
func (g *Glance) List(ctx context.Context, token string) ([]Image, error) {
	c, err := g.client(ctx, token)
	if err != nil {
		return nil, err
	}
	out := []Image{}
	err = images.List(c, images.ListOpts{Limit: 1000}).EachPage(ctx, func(_ context.Context, page pagination.Page) (bool, error) {
		list, err := images.ExtractImages(page)
		for i := range list {
			out = append(out, imageOf(&list[i]))
		}
		return len(out) < maxListed, err
	})
	return out, g.translate(ctx, "", err)
}

// Create implements Keeper.
func (g *Glance) Create(ctx context.Context, token string, is Image) (string, error) {
	c, err := g.client(ctx, token)
	if err != nil {
		return "", err
	}
	made, err := images.Create(ctx, c, images.CreateOpts{
		Name: is.Name, ContainerFormat: "bare", DiskFormat: is.Format, MinDisk: is.MinDiskGiB, MinRAM: is.MinRAMMiB, Properties: is.Properties,
	}).Extract()
	switch {
	case gophercloud.ResponseCodeIs(err, http.StatusForbidden), gophercloud.ResponseCodeIs(err, http.StatusUnauthorized):
		return "", fault.New(fault.Denied, "Not authorized to create an image.")
	case gophercloud.ResponseCodeIs(err, http.StatusRequestEntityTooLarge):
		return "", fault.New(fault.Denied, "Quota exceeded, too many metadata items, or too many images.")
	case gophercloud.ResponseCodeIs(err, http.StatusBadRequest):
		return "", fault.New(fault.Invalid, "the image service refuses the name or the metadata of the image")
	case err != nil:
		return "", g.translate(ctx, "", err)
	}
	return made.ID, nil
}

// Delete implements Keeper.
func (g *Glance) Delete(ctx context.Context, token, id string) error {
	if !isID(id) {
		return fault.New(fault.NotFound, "Image %s could not be found.", id)
	}
	g.forget()
	c, err := g.client(ctx, token)
	if err != nil {
		return err
	}
	return g.translate(ctx, id, images.Delete(ctx, c, id).ExtractErr())
}

// forget empties the cache.
func (g *Glance) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.cache)
}

// SetProperties implements Keeper.
func (g *Glance) SetProperties(ctx context.Context, token, id string, to map[string]string) (*Image, error) {
	is, err := g.get(ctx, token, id)
	if err != nil {
		return nil, err
	}
	g.forget()
	var change images.UpdateOpts
	for _, key := range slices.Sorted(maps.Keys(is.Properties)) {
		if _, stays := to[key]; !stays {
			change = append(change, images.UpdateImageProperty{Op: images.RemoveOp, Name: escapeName(key)})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(to)) {
		now, has := is.Properties[key]
		switch {
		case !has:
			change = append(change, images.UpdateImageProperty{Op: images.AddOp, Name: escapeName(key), Value: to[key]})
		case now != to[key]:
			change = append(change, images.UpdateImageProperty{Op: images.ReplaceOp, Name: escapeName(key), Value: to[key]})
		}
	}
	if len(change) == 0 {
		return is, nil
	}
	c, err := g.client(ctx, token)
	if err != nil {
		return nil, err
	}
	changed, err := images.Update(ctx, c, id, change).Extract()
	if err != nil {
		return nil, g.translate(ctx, id, err)
	}
	return new(imageOf(changed)), nil
}

// escapeName writes a name as a part of a JSON pointer (RFC 6901).
func escapeName(name string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(name) }

// transfer sends a request for the content of an image, as the service's own user. The caller closes the body of the reply. Its status is one of ok.
func (g *Glance) transfer(ctx context.Context, method, id string, body io.Reader, ok int) (*http.Response, error) {
	for renewed := false; ; renewed = true {
		p, at, err := g.login(ctx)
		if err != nil {
			return nil, g.translate(ctx, "", err)
		}
		token := p.Token()
		req, err := http.NewRequestWithContext(ctx, method, at+"v2/images/"+id+"/file", body)
		if err != nil {
			return nil, err
		}
		req.Header.Set("X-Auth-Token", token)
		req.Header.Set("Content-Type", "application/octet-stream")
		resp, err := g.data.Do(req)
		if err != nil {
			return nil, g.translate(ctx, id, err)
		}
		if resp.StatusCode == ok {
			return resp, nil
		}
		_ = resp.Body.Close() // it was not read
		if resp.StatusCode != http.StatusUnauthorized || renewed || body != nil {
			return nil, g.translate(ctx, id, gophercloud.ErrUnexpectedResponseCode{Method: method, URL: req.URL.String(), Actual: resp.StatusCode})
		}
		if err := p.Reauthenticate(ctx, token); err != nil {
			return nil, g.translate(ctx, "", err)
		}
	}
}

var _ Keeper = (*Glance)(nil)

// equalHash compares a checksum with the text of one.
func equalHash(sum []byte, text string) bool {
	return strings.EqualFold(hex.EncodeToString(sum), text)
}
