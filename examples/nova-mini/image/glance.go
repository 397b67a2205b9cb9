package image

import (
	"cmp"
	"context"
	"crypto/sha256"
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
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"
	"github.com/gophercloud/gophercloud/v2/pagination"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/fault"
)

// GlanceConfig configures a [Glance]. The user of the session has the role admin, because it reads the images of all projects. Its Type and Version
// are set by [NewGlance].
type GlanceConfig struct {
	session.Config

	// TTL is the time for which [Glance.Get] returns an image again without a request. Default 5 s; negative: not at all.
	TTL    time.Duration
	Logger *slog.Logger
}

// Glance are the images of OpenStack's image service. It is a [Keeper], and is safe for concurrent use. A method blocks until the service answers, at most Timeout.
type Glance struct {
	*session.Session

	cfg GlanceConfig

	mu    sync.Mutex
	cache map[[32]byte]cached
}

type cached struct {
	image Image
	until time.Time
}

// maxCached bounds the number of images in the cache, and maxListed that of a list.
const (
	maxCached = 1000
	maxListed = 10_000
)

// NewGlance returns the images of an image service. It sends no request. Errors: those of [session.New].
func NewGlance(cfg GlanceConfig) (*Glance, error) {
	cfg.Type, cfg.Version = "image", "v2"
	cfg.TTL = cmp.Or(cfg.TTL, 5*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s, err := session.New(cfg.Config)
	return &Glance{Session: s, cfg: cfg, cache: map[[32]byte]cached{}}, err
}

// client returns a client for a token, or, if the token is empty, for the service's own user.
func (g *Glance) client(ctx context.Context, token string) (*gophercloud.ServiceClient, error) {
	c, err := g.Client(ctx, token)
	if err != nil {
		return nil, g.translate(ctx, "", err)
	}
	return c, nil
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
	return g.list(ctx, token, images.ListOpts{Limit: 1000})
}

func (g *Glance) list(ctx context.Context, token string, of images.ListOptsBuilder) ([]Image, error) {
	c, err := g.client(ctx, token)
	if err != nil {
		return nil, err
	}
	out := []Image{}
	err = images.List(c, of).EachPage(ctx, func(_ context.Context, page pagination.Page) (bool, error) {
		list, err := images.ExtractImages(page)
		for i := range list {
			out = append(out, imageOf(&list[i]))
		}
		return len(out) < maxListed, err
	})
	return out, g.translate(ctx, "", err)
}

// The properties of a backup, by which it is found.
const (
	TypeProperty       = "image_type"
	BackupType         = "backup" // the value of TypeProperty
	BackupTypeProperty = "backup_type"
	ServerProperty     = "instance_uuid"
)

// backupQuery selects the backups of a server, the newest first.
type backupQuery url.Values

// ToImageListQuery implements images.ListOptsBuilder.
func (q backupQuery) ToImageListQuery() (string, error) { return "?" + url.Values(q).Encode(), nil }

// backups returns the backups of a server of a type that belong to a project, the newest first, at most 10,000.
func (g *Glance) backups(ctx context.Context, server string, r compute.Rotation) ([]Image, error) {
	return g.list(ctx, "", backupQuery{
		TypeProperty: {BackupType}, BackupTypeProperty: {r.Type}, ServerProperty: {server}, "owner": {r.ProjectID}, "sort": {"created_at:desc"}, "limit": {"1000"},
	})
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
		c, err := g.client(ctx, "")
		if err != nil {
			return nil, err
		}
		token := c.Token()
		req, err := http.NewRequestWithContext(ctx, method, c.ResourceBase+"images/"+id+"/file", body)
		if err != nil {
			return nil, err
		}
		req.Header.Set("X-Auth-Token", token)
		req.Header.Set("Content-Type", "application/octet-stream")
		resp, err := g.Transfers().Do(req)
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
		if err := c.Reauthenticate(ctx, token); err != nil {
			return nil, g.translate(ctx, "", err)
		}
	}
}

var _ Keeper = (*Glance)(nil)

// equalHash compares a checksum with the text of one.
func equalHash(sum []byte, text string) bool {
	return strings.EqualFold(hex.EncodeToString(sum), text)
}
