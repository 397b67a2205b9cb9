package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
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

// GlanceConfig configures a [Glance]. The user of the session must have the role admin, because it reads the images of all projects. [NewGlance] sets
// Type and Version.
type GlanceConfig struct {
	session.Config

	// TTL is the time for which [Glance.Get] returns an image from its cache. Default 5 s; negative: there is no cache.
	TTL time.Duration
	// TransferTimeout limits the time without a transferred byte of an image. After that time the transfer fails with Unavailable. Default 1 minute.
	TransferTimeout time.Duration
	// FinishTimeout limits the time between the last byte of an upload and the reply. In this time the service writes and verifies the content. Later the upload fails with Unavailable.
	// Default three times TransferTimeout. Values below TransferTimeout are raised to TransferTimeout.
	FinishTimeout time.Duration
	Logger        *slog.Logger
}

// Glance is a client of OpenStack's image service. It is a [Keeper], and is safe for concurrent use. Each request of a method blocks for at most the Timeout of session.Config.
type Glance struct {
	*session.Session

	cfg GlanceConfig

	mu      sync.Mutex
	cache   map[[32]byte]cached
	forgets int // number of times that the cache was emptied after a change
}

type cached struct {
	image Image
	until time.Time
}

// maxCached limits the number of images in the cache, and maxListed the number of images in a list.
const (
	maxCached = 1000
	maxListed = 10_000
)

// NewGlance returns a client of the image service. It sends no request. Errors: those of [session.New].
func NewGlance(cfg GlanceConfig) (*Glance, error) {
	cfg.Type, cfg.Version = "image", "v2"
	cfg.TTL, cfg.TransferTimeout = cmp.Or(cfg.TTL, 5*time.Second), cmp.Or(cfg.TransferTimeout, time.Minute)
	cfg.FinishTimeout = max(cmp.Or(cfg.FinishTimeout, 3*cfg.TransferTimeout), cfg.TransferTimeout)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s, err := session.New(cfg.Config)
	return &Glance{Session: s, cfg: cfg, cache: map[[32]byte]cached{}}, err
}

// client returns an HTTP client that uses the token. If the token is empty, the client uses nova-mini's own user.
func (g *Glance) client(ctx context.Context, token string) (*gophercloud.ServiceClient, error) {
	c, err := g.Client(ctx, token)
	return c, g.unavailable(ctx, "", err)
}

// translate gives an error of the image service a code. The parameter id is the image of the request, or "". The texts are Nova's. The reply's own text is left out, because
// it may contain a token.
func (g *Glance) translate(ctx context.Context, id string, err error) error {
	reply, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err)
	if ok && id != "" && ctx.Err() == nil {
		switch reply.Actual {
		case http.StatusNotFound:
			return fault.New(fault.NotFound, "Image %s could not be found.", id)
		case http.StatusForbidden, http.StatusUnauthorized:
			return fault.New(fault.Denied, "Not authorized for image %s.", id)
		case http.StatusConflict:
			return fault.New(fault.Conflict, "the image service refuses the change of image %s in its present state", id)
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
			return fault.New(fault.Invalid, "Request of image %s got BadRequest response: status %d", id, reply.Actual)
		}
	}
	return g.unavailable(ctx, id, g.Translate(ctx, nil, err))
}

// unavailable logs an error of the session, and gives it Nova's text. An error because ctx has ended stays as it is.
func (g *Glance) unavailable(ctx context.Context, id string, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	g.cfg.Logger.ErrorContext(ctx, "image service failed", "image", id, "error", err)
	return fault.WithUser(err, "Connection to glance host failed: the image service is not available now.")
}

// Get implements Source. The result may be up to GlanceConfig.TTL old.
func (g *Glance) Get(ctx context.Context, token, id string) (*Image, error) {
	key := sha256.Sum256([]byte(token + "\x00" + id))
	g.mu.Lock()
	c, ok := g.cache[key]
	forgets := g.forgets
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
	if g.cfg.TTL > 0 && is.Status == Active && g.forgets == forgets { // an image that was read before a change is not stored; a status other than active soon changes
		g.cache[key] = cached{*is, time.Now().Add(g.cfg.TTL)}
	}
	return is, nil
}

// get asks the service for an image.
func (g *Glance) get(ctx context.Context, token, id string) (*Image, error) {
	if !isID(id) { // the id would make another path of the URL
		return nil, fault.New(fault.NotFound, "Image %s could not be found.", id)
	}
	c, err := g.client(ctx, token)
	if err != nil {
		return nil, err
	}
	found, err := extractImage(images.Get(ctx, c, id).Result)
	if err == nil && found.ID != id {
		err = errors.New("the reply has another image than the request")
	}
	if err != nil {
		return nil, g.translate(ctx, id, err)
	}
	return &found, nil
}

// isID reports whether a text may be the id of an image: 1 to 64 letters, digits and hyphens.
func isID(text string) bool {
	return text != "" && len(text) <= 64 && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == ""
}

// List implements Source. It returns the first 10,000 images. It leaves out an image that it cannot decode, and logs the image's id.
func (g *Glance) List(ctx context.Context, token string) ([]Image, error) {
	return g.list(ctx, token, images.ListOpts{Limit: 1000})
}

func (g *Glance) list(ctx context.Context, token string, of images.ListOptsBuilder) ([]Image, error) {
	c, err := g.client(ctx, token)
	if err != nil {
		return nil, err
	}
	query, err := of.ToImageListQuery()
	if err != nil {
		return nil, fault.New(fault.Internal, "list images: %w", err)
	}
	out, list := []Image{}, c.ServiceURL("images")
	pages := pagination.NewPager(c, list+query, func(r pagination.PageResult) pagination.Page { return imagePage{r, list} })
	err = pages.EachPage(ctx, func(ctx context.Context, page pagination.Page) (bool, error) {
		items, err := page.(imagePage).items() //nolint:forcetypeassert // the pager makes no other page
		for _, raw := range items {
			is, err := decodeImage(raw)
			if err != nil {
				g.cfg.Logger.WarnContext(ctx, "image left out of a list", "image", is.ID, "error", err)
				continue
			}
			out = append(out, is)
		}
		return len(out) < maxListed, err
	})
	if refused := g.Translate(ctx, c, err); errors.Is(refused, fault.Unauthenticated) || errors.Is(refused, fault.Denied) {
		return out, refused
	}
	return out, g.translate(ctx, "", err)
}

// The properties by which the backups of a server are found.
const (
	TypeProperty       = "image_type"
	BackupType         = "backup" // the value of TypeProperty
	BackupTypeProperty = "backup_type"
	ServerProperty     = "instance_uuid"
)

// backupQuery is a query that selects the backups of a server, the newest first.
type backupQuery url.Values

// ToImageListQuery implements images.ListOptsBuilder.
func (q backupQuery) ToImageListQuery() (string, error) { return "?" + url.Values(q).Encode(), nil }

// backups returns the backups of a server with the type r.Type in the project r.ProjectID, the newest first, at most 10,000.
func (g *Glance) backups(ctx context.Context, server string, r compute.Rotation) ([]Image, error) {
	list, err := g.list(ctx, "", backupQuery{
		TypeProperty: {BackupType}, BackupTypeProperty: {r.Type}, ServerProperty: {server}, "owner": {r.ProjectID}, "sort": {"created_at:desc"}, "limit": {"1000"},
	})
	return slices.DeleteFunc(list, func(is Image) bool { // the image service may ignore a filter, or compare without regard to case
		p := is.Properties
		return is.owner != r.ProjectID || p[TypeProperty] != BackupType || p[BackupTypeProperty] != r.Type || p[ServerProperty] != server
	}), err
}

// Create implements Keeper.
func (g *Glance) Create(ctx context.Context, token string, is Image) (string, error) {
	c, err := g.client(ctx, token)
	if err != nil {
		return "", err
	}
	made, err := extractImage(images.Create(ctx, c, images.CreateOpts{
		Name: is.Name, ContainerFormat: "bare", DiskFormat: is.Format, MinDisk: is.MinDiskGiB, MinRAM: is.MinRAMMiB, Properties: is.Properties,
	}).Result)
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
	defer g.forget()
	c, err := g.client(ctx, token)
	if err != nil {
		return err
	}
	return g.translate(ctx, id, images.Delete(ctx, c, id).ExtractErr())
}

// Discard removes an image as nova-mini's own user. If keepActive is set, an image with content stays. It is not an error if the image does not exist. Errors: Unavailable; Denied, such as for
// a protected image; Conflict if the image is in use.
func (g *Glance) Discard(ctx context.Context, id string, keepActive bool) error {
	var err error
	if keepActive {
		var is *Image
		if is, err = g.get(ctx, "", id); err == nil && is.Status == Active {
			return nil
		}
	}
	if err == nil {
		err = g.Delete(ctx, "", id)
	}
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// forget empties the cache.
func (g *Glance) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.cache)
	g.forgets++
}

// maxChanges limits the attempts of a change of properties while other clients change the same properties.
const maxChanges = 5

// SetProperties implements Keeper. It sends only the properties that differ, so it does not undo a change of other properties at the same time.
func (g *Glance) SetProperties(ctx context.Context, token, id string, change func(map[string]string) (map[string]string, error)) (*Image, error) {
	defer g.forget() // after the request, because a read at the same time may have cached the old image
	for i := 1; ; i++ {
		is, err := g.get(ctx, token, id)
		if err != nil {
			return nil, err
		}
		to, err := change(maps.Clone(is.Properties))
		if err != nil {
			return nil, err
		}
		ops := propertyChanges(is.Properties, to)
		if len(ops) == 0 {
			return is, nil
		}
		c, err := g.client(ctx, token)
		if err != nil {
			return nil, err
		}
		changed, err := extractImage(images.Update(ctx, c, id, ops).Result)
		if err == nil {
			return &changed, nil
		}
		if err = g.translate(ctx, id, err); !errors.Is(err, fault.Conflict) || i == maxChanges {
			return nil, err
		}
	}
}

// propertyChanges returns the operations that change the properties in the argument now into those in the argument to.
func propertyChanges(now, to map[string]string) (out images.UpdateOpts) {
	for _, key := range slices.Sorted(maps.Keys(now)) {
		if _, stays := to[key]; !stays {
			out = append(out, images.UpdateImageProperty{Op: images.RemoveOp, Name: escapeName(key)})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(to)) {
		value, has := now[key]
		switch {
		case !has:
			out = append(out, images.UpdateImageProperty{Op: images.AddOp, Name: escapeName(key), Value: to[key]})
		case value != to[key]:
			out = append(out, images.UpdateImageProperty{Op: images.ReplaceOp, Name: escapeName(key), Value: to[key]})
		}
	}
	return out
}

// escapeName escapes a name for a JSON pointer (RFC 6901).
func escapeName(name string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(name) }

var _ Keeper = (*Glance)(nil)

// equalHash reports whether a checksum is equal to another one in hexadecimal form.
func equalHash(sum []byte, text string) bool {
	return strings.EqualFold(hex.EncodeToString(sum), text)
}
