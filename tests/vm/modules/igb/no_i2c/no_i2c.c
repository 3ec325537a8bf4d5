/* SPDX-License-Identifier: MIT
 * What igb calls of I2C, on a kernel without: there is no adapter, and no device on it.
 */
#include <linux/i2c.h>
#include <linux/i2c-algo-bit.h>
#include <linux/module.h>

int i2c_bit_add_bus(struct i2c_adapter *adapter)
{
	return -ENODEV;
}
EXPORT_SYMBOL(i2c_bit_add_bus);

void i2c_del_adapter(struct i2c_adapter *adapter)
{
}
EXPORT_SYMBOL(i2c_del_adapter);

s32 i2c_smbus_read_byte_data(const struct i2c_client *client, u8 command)
{
	return -ENODEV;
}
EXPORT_SYMBOL(i2c_smbus_read_byte_data);

s32 i2c_smbus_write_byte_data(const struct i2c_client *client, u8 command, u8 value)
{
	return -ENODEV;
}
EXPORT_SYMBOL(i2c_smbus_write_byte_data);

MODULE_DESCRIPTION("I2C that is not there");
MODULE_LICENSE("Dual MIT/GPL");
