package store

import (
	"context"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
)

// Backup describes a backup of a server.
type Backup struct {
	// Type is the type that the client has chosen, such as daily. Keep is the number of backups of this type that remain: the newest ones.
	Type string `json:"type"`
	Keep int    `json:"keep"`
	// ProjectID is the project to which the backups belong.
	ProjectID string `json:"project_id"`
	// ByDriver means that the driver keeps the backups, because there is no image service.
	ByDriver bool `json:"by_driver,omitempty"`
	// Made reports whether the new backup is complete.
	Made bool `json:"made,omitempty"`
	// Remove are the older backups that the driver must remove.
	Remove []string `json:"remove,omitempty"`
}

// AddBackup records an image that the driver of the server's host keeps as a backup. It runs in the transaction that ends the operation's step. It is not an
// error if the server does not exist, or if the image is recorded already, as after operation.Store.Retry.
func (s *Store) AddBackup(ctx context.Context, tx *sqlx.Tx, id, image, backupType string) error {
	_, err := db.Exec(ctx, tx, `INSERT INTO backups (image_id, server_id, host, backup_type, created_at) SELECT ?, id, host, ?, UTC_TIMESTAMP(6) FROM servers
		WHERE id = ? AND host IS NOT NULL AND NOT EXISTS (SELECT 1 FROM backups WHERE image_id = ?)`, image, backupType, id, image)
	return err
}

// ExcessBackups returns the image ids of the backups that exceed b.Keep: all backups of the type b.Type on the server's host except
// the b.Keep newest ones. It returns at most 1000 ids, the oldest backups first.
func (s *Store) ExcessBackups(ctx context.Context, id string, b *Backup) (out []string, err error) {
	var list []struct {
		ID   string `db:"image_id"`
		Type string `db:"backup_type"`
	}
	err = db.Error(s.db.SelectContext(ctx, &list, `SELECT image_id, backup_type FROM backups
		WHERE server_id = ? AND host = (SELECT host FROM servers WHERE id = ?) ORDER BY created_at, image_id`, id, id))
	for _, one := range list {
		if one.Type == b.Type { // compared here, because some databases compare without regard to case
			out = append(out, one.ID)
		}
	}
	return out[:min(max(len(out)-b.Keep, 0), 1000)], err
}

// ForgetBackups deletes the records of images that a driver has removed. It runs in the transaction in which the operation ends.
func (s *Store) ForgetBackups(ctx context.Context, tx *sqlx.Tx, images []string) error {
	if len(images) == 0 {
		return nil
	}
	query, args, err := sqlx.In(`DELETE FROM backups WHERE image_id IN (?)`, images)
	if err == nil {
		_, err = db.Exec(ctx, tx, query, args...)
	}
	return err
}
